"""How many floating-point operations a matrix product, a convolution or a recurrent layer takes, from shapes alone.

One formula serves each family, because each input element meets each weight a known number of times:

    matrix product     (m, k) @ (k, n)           2 m k n
    convolution        every output place         2 * batch * places * numel(weight)      numel(weight) knows groups
    transposed         every input place          2 * batch * places * numel(weight)
    recurrent layer    every time step            2 * steps * sum(numel(matrix))          batch is inside steps

Products with padding zeros are counted, as `torch.utils.flop_counter` does; unlike it, the weight gradient of a grouped
convolution counts its groups once. A sparse matrix counts its stored elements.

>>> import torch
>>> image, weight = torch.empty(8, 3, 32, 32, device="meta"), torch.empty(16, 3, 3, 3, device="meta")
>>> args = (image, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
>>> PRODUCTS["aten::convolution"](args, torch.ops.aten.convolution(*args))
7077888
>>> 2 * 8 * (32 * 32) * (16 * 3 * 3 * 3)
7077888
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import prod
from typing import Any, TypeAlias

FlopRule: TypeAlias = Callable[[tuple[Any, ...], Any], int]
"""`rule(args, out)`: operations of one call; `args` as a dispatch mode sees them, `out` what the call returned."""


def _mm(args: tuple[Any, ...], _out: object, at: int = 0) -> int:
    # (.., m, k) @ (.., k, n); `at` is the position of the left matrix
    a, b = args[at], args[at + 1]
    if a.is_sparse or a.is_sparse_csr:
        return 2 * int(a._nnz()) * int(b.shape[-1])
    return 2 * int(a.numel()) * int(b.shape[-1])


def _vector(args: tuple[Any, ...], _out: object, at: int = 0) -> int:
    # (m, k) @ (k,), or a dot product
    return 2 * int(args[at].numel())


def _matmul(args: tuple[Any, ...], out: Any) -> int:
    return 2 * int(out.numel()) * int(args[0].shape[-1])


def _grouped_mm(args: tuple[Any, ...], _out: object) -> int:
    # Rows (or columns) are dealt out to the groups, so each meets one group's matrix only.
    a, b = args[:2]
    if a.dim() == 3 and b.dim() == 2:
        return 2 * int(a.shape[1]) * int(b.numel())
    return 2 * int(a.numel()) * int(b.shape[-1])


def _foreach_mm(args: tuple[Any, ...], out: object) -> int:
    return sum(_mm(pair, out) for pair in zip(args[0], args[1], strict=True))


def _linear(args: tuple[Any, ...], _out: object) -> int:
    return 2 * int(args[0].numel()) * int(args[1].shape[0])


def _linear_backward(args: tuple[Any, ...], _out: object) -> int:
    # arguments: input, grad_output, weight, and a mask of input, weight and bias
    return 2 * int(args[0].numel()) * int(args[2].shape[0]) * int(sum(args[3][:2]))


def _trilinear(args: tuple[Any, ...], _out: object) -> int:
    # Every cell of the space the three operands span is one multiply-add; the third operand joins after the sum.
    shapes = [list(operand.shape) for operand in args[:3]]
    for shape, expand in zip(shapes, args[3:6], strict=True):
        for dim in expand:
            shape.insert(dim, 1)
    return 2 * int(prod(max(sizes) for sizes in zip(*shapes, strict=True)))


def _euclidean_dist(args: tuple[Any, ...], _out: object) -> int:
    # One product of the points with two columns added: their squared norms and ones.
    x, y = args[:2]
    return 2 * int(x.numel()) // max(int(x.shape[-1]), 1) * (int(x.shape[-1]) + 2) * int(y.shape[-2])


def _cdist(args: tuple[Any, ...], out: Any) -> int:
    # A product only for p = 2, when the mode asks for it (1) or lets size decide (0, the default).
    x, y, p, mode = args
    if p == 2 and (mode == 1 or (not mode and (x.shape[-2] > 25 or y.shape[-2] > 25))):
        return 2 * int(out.numel()) * (int(x.shape[-1]) + 2)
    return 0


def _places(tensor: Any) -> int:
    """Batch times spatial places of an (N, C, ...) tensor."""
    shape = tensor.shape
    return int(prod(shape[2:])) * int(shape[0])


def _convolution(args: tuple[Any, ...], out: Any) -> int:
    # arguments: input, weight, bias, stride, padding, dilation, transposed, ...
    return 2 * _places(args[0] if args[6] else out) * int(args[1].numel())


def _convolution_plain(args: tuple[Any, ...], out: Any) -> int:
    return 2 * _places(out) * int(args[1].numel())


def _convolution_transposed(args: tuple[Any, ...], _out: object) -> int:
    return 2 * _places(args[0]) * int(args[1].numel())


def _convolution_backward(args: tuple[Any, ...], _out: object, transposed_at: int = 7) -> int:
    # arguments: grad_output, input, weight, [bias_sizes,] stride, padding, dilation, transposed, ..., output_mask
    places = _places(args[1] if args[transposed_at] else args[0])
    return 2 * places * int(args[2].numel()) * int(sum(args[-1][:2]))


def _matrices(tensors: Iterable[Any]) -> int:
    return sum(int(tensor.numel()) for tensor in tensors if tensor.dim() == 2)


def _steps(sequence: Any) -> int:
    return int(sequence.numel()) // max(int(sequence.shape[-1]), 1)


def _rnn(args: tuple[Any, ...], _out: object) -> int:
    # arguments: input, weights of all layers and directions, ...
    return 2 * _steps(args[0]) * _matrices(args[1])


def _rnn_backward(args: tuple[Any, ...], out: object) -> int:
    # The mask is (input, hx, cx, weights); the library always differentiates the data.
    return _rnn(args, out) * (1 + bool(args[-1][3]))


def _rnn_layer(args: tuple[Any, ...], _out: object, passes: int = 1) -> int:
    # arguments: input, weight_ih, weight_hh, bias_ih, bias_hh, ...: one layer, one direction
    return 2 * passes * _steps(args[0]) * _matrices(args[1:5])


def _named(rule: FlopRule, *names: str) -> dict[str, FlopRule]:
    return {f"aten::{name}": rule for name in names}


PRODUCTS: dict[str, FlopRule] = {
    **_named(_mm, "mm", "bmm", "_int_mm", "_scaled_mm", "_scaled_mm_v2", "_sparse_mm"),
    **_named(partial(_mm, at=1), "addmm", "addmm_", "_addmm_activation", "_sparse_addmm", "sspaddmm"),
    **_named(partial(_mm, at=1), "baddbmm", "baddbmm_", "addbmm", "addbmm_"),
    **_named(_vector, "mv", "dot", "vdot"),
    **_named(partial(_vector, at=1), "addmv", "addmv_"),
    **_named(_matmul, "matmul"),
    **_named(_grouped_mm, "_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2"),
    **_named(_foreach_mm, "_foreach_mm"),
    **_named(_linear, "linear", "mkldnn_linear"),
    **_named(_linear_backward, "linear_backward", "mkldnn_linear_backward"),
    **_named(_trilinear, "_trilinear"),
    **_named(_euclidean_dist, "_euclidean_dist"),
    **_named(_cdist, "_cdist_forward"),
    **_named(_convolution, "convolution", "_convolution", "convolution_overrideable"),
    **_named(_convolution_plain, "cudnn_convolution", "mkldnn_convolution", "miopen_convolution", "_conv_depthwise2d"),
    **_named(_convolution_plain, "cudnn_convolution_relu", "cudnn_convolution_add_relu", "conv_depthwise3d"),
    **_named(_convolution_plain, "conv1d", "conv2d", "conv3d", "_slow_conv2d_forward", "slow_conv3d"),
    **_named(_convolution_plain, "slow_conv_dilated2d", "slow_conv_dilated3d", "_nnpack_spatial_convolution"),
    **_named(_convolution_transposed, "cudnn_convolution_transpose", "miopen_convolution_transpose"),
    **_named(_convolution_transposed, "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    **_named(_convolution_transposed, "slow_conv_transpose2d", "slow_conv_transpose3d"),
    **_named(_convolution_backward, "convolution_backward"),
    **_named(partial(_convolution_backward, transposed_at=6), "convolution_backward_overrideable"),
    **_named(_rnn, "_cudnn_rnn", "miopen_rnn"),
    **_named(_rnn_backward, "_cudnn_rnn_backward", "miopen_rnn_backward"),
    **_named(_rnn_layer, "mkldnn_rnn_layer"),
    **_named(partial(_rnn_layer, passes=2), "mkldnn_rnn_layer_backward"),
}
"""Formula of each operator that is a product, by schema name."""
