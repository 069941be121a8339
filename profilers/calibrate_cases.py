"""What `dnnmem calibrate` runs: single operators as training calls them, small to large, each with memory of its own.

    products        forward, gradient of the input and of the weight, by shortest side and flops; batched; odd sizes
    convolutions    1x1, 3x3 and 7x7, grouped, depthwise; forward and backward
    attention       fused, causal and not, by head width; forward and backward
    traffic         the operators of activations, norms, losses, embeddings and optimizers, by bytes

A case is made just before it runs and dropped after it. Sizes are cut off where they would take too much memory or, on
a CPU, too long.
"""

# ruff: noqa: FBT003 - the arguments of aten's operators are positional
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

Call = Callable[[], object]
Make = Callable[[], Call]
aten = torch.ops.aten
SIDES = (1, 8, 32, 128, 512, 2048)
"""Shortest sides of products."""
_LONGEST = 4096
"""Longest side of a product beside its shortest."""
ROWS = 512
"""Length of a row of what is normalised, softmaxed or embedded."""


def all_cases(device: str, dtype: torch.dtype, *, most_flops: float, most_bytes: float) -> Iterator[Make]:
    """Every case for tensors of `dtype` on `device`, within these limits for one call."""
    new = partial(torch.randn, device=device, dtype=dtype)
    yield from products(new, most_flops=most_flops)
    yield from batched_products(new, most_flops=most_flops)
    yield from convolutions(new, most_flops=most_flops)
    yield from attention(new, most_flops=most_flops)
    if dtype == torch.float32:
        yield from traffic(device, most_bytes=most_bytes)


def products(new: Callable[..., Tensor], *, most_flops: float) -> Iterator[Make]:
    """(m, k) @ (k, n) with each of the three sides the shortest, in the three layouts of a linear layer."""
    for side in SIDES:
        for flops in (1e5, 1e6, 1e7, 1e8, 1e9, 1e11):
            other = round((flops / 2 / side) ** 0.5)
            if not side <= other <= _LONGEST or flops > most_flops:
                continue
            for m, n, k in ((side, other, other), (other, side, other), (other, other, side)):
                yield partial(_linear, new, m, n, k)
                yield partial(_input_gradient, new, m, n, k)
                yield partial(_weight_gradient, new, m, n, k)


def _linear(new: Callable[..., Tensor], m: int, n: int, k: int) -> Call:
    x, weight, bias = new(m, k), new(n, k), new(n)
    return lambda: aten.addmm.default(bias, x, weight.t())


def _input_gradient(new: Callable[..., Tensor], m: int, n: int, k: int) -> Call:
    gradient, weight = new(m, k), new(k, n)
    return lambda: aten.mm.default(gradient, weight)


def _weight_gradient(new: Callable[..., Tensor], m: int, n: int, k: int) -> Call:
    gradient, x = new(k, m), new(k, n)
    return lambda: aten.mm.default(gradient.t(), x)


def batched_products(new: Callable[..., Tensor], *, most_flops: float) -> Iterator[Make]:
    """Many products of one size: attention without a fused kernel, experts."""
    for side in (16, 64, 256):
        for rows in (16, 64, 256, 1024):
            for count in (8, 64):
                if rows >= side and 2 * count * rows * rows * side <= most_flops:
                    yield partial(_batched, new, count, rows, side)


def _batched(new: Callable[..., Tensor], count: int, rows: int, side: int) -> Call:
    a, b = new(count, rows, side), new(count, rows, side)
    return lambda: aten.bmm.default(a, b.transpose(1, 2))


def convolutions(new: Callable[..., Tensor], *, most_flops: float) -> Iterator[Make]:
    """(channels in, channels out, window, stride, groups) over images of several sizes and batches."""
    shapes = [
        *((c, c, window, 1, 1) for window in (1, 3) for c in (16, 32, 64, 128, 256, 512)),
        *((c, 4 * c, 1, 1, 1) for c in (16, 64, 256)), *((4 * c, c, 1, 1, 1) for c in (16, 64, 256)),
        (3, 32, 3, 2, 1), (3, 64, 7, 2, 1), (64, 128, 3, 2, 1), (3, 192, 8, 8, 1),
        *((c, c, 3, 1, 32) for c in (128, 256, 512)), *((c, c, 3, 1, c // 16) for c in (64, 256)),
        *((c, c, window, 1, c) for window in (3, 5) for c in (32, 96, 384)),
    ]  # fmt: skip
    for shape in shapes:
        for batch, image in ((1, 4), (4, 8), (1, 14), (8, 14), (8, 28), (32, 56)):
            channels, out, window, stride, groups = shape
            flops = 2 * batch * (image // stride) ** 2 * out * channels // groups * window**2
            if window <= image and flops * 3 <= most_flops and prod((batch, channels, image, image)) < 2e7:
                yield partial(_convolution, new, shape, batch, image)
                yield partial(_convolution_gradient, new, shape, batch, image)


_Shape = tuple[int, int, int, int, int]


def _convolution(new: Callable[..., Tensor], shape: _Shape, batch: int, image: int) -> Call:
    channels, out, window, stride, groups = shape
    x, weight = new(batch, channels, image, image), new(out, channels // groups, window, window)
    around = [window // 2 if stride < window else 0] * 2
    return lambda: aten.convolution.default(x, weight, None, [stride] * 2, around, [1, 1], False, [0, 0], groups)


def _convolution_gradient(new: Callable[..., Tensor], shape: _Shape, batch: int, image: int) -> Call:
    channels, out, window, stride, groups = shape
    x, weight = new(batch, channels, image, image), new(out, channels // groups, window, window)
    around = [window // 2 if stride < window else 0] * 2
    y = aten.convolution.default(x, weight, None, [stride] * 2, around, [1, 1], False, [0, 0], groups)
    wanted = [channels > 3, True, False]
    return lambda: aten.convolution_backward.default(
        y, x, weight, None, [stride] * 2, around, [1, 1], False, [0, 0], groups, wanted
    )


def attention(new: Callable[..., Tensor], *, most_flops: float) -> Iterator[Make]:
    """Fused attention of (batch, heads, tokens, head width)."""
    for width in (32, 64, 128):
        for batch, heads, tokens in ((1, 4, 64), (8, 4, 64), (4, 4, 128), (4, 8, 256), (2, 12, 1024), (4, 16, 4096)):
            if 8 * batch * heads * tokens * tokens * width <= most_flops:
                for causal in (False, True):
                    yield partial(_attention, new, (batch, heads, tokens, width), causal=causal)
                    yield partial(_attention_gradient, new, (batch, heads, tokens, width), causal=causal)


def _attention(new: Callable[..., Tensor], shape: tuple[int, ...], *, causal: bool) -> Call:
    q, k, v = new(*shape), new(*shape), new(*shape)
    return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=causal)


def _attention_gradient(new: Callable[..., Tensor], shape: tuple[int, ...], *, causal: bool) -> Call:
    q, k, v = (new(*shape).requires_grad_() for _ in range(3))
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    seed = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, (q, k, v), seed, retain_graph=True)


def traffic(device: str, *, most_bytes: float) -> Iterator[Make]:
    """Operators that compute little, on float32 tensors of growing size."""
    elements = [ROWS // 2 * 8**i for i in range(8)]
    for count in elements:
        if 16 * count <= most_bytes:
            for make in (_activations, _norms, _losses, _optimizer, _copies, _pictures):
                yield from make(device, count)


def _ready(run: Call) -> Make:
    return lambda: run


def _activations(device: str, count: int) -> Iterator[Make]:
    x, y = torch.randn(count, device=device), torch.randn(count, device=device)
    some = x > 0
    forward = (
        aten.gelu,
        aten.relu,
        aten.silu,
        aten.sigmoid,
        aten.tanh,
        aten.exp,
        aten.hardswish,
        aten.hardsigmoid,
        aten.neg,
    )
    for operator in forward:
        yield _ready(partial(operator, x))
    for operator in (aten.gelu_backward, aten.silu_backward, aten.hardswish_backward, aten.sigmoid_backward):
        yield _ready(partial(operator, x, y))
    yield _ready(partial(aten.threshold_backward, x, y, 0))
    yield _ready(partial(aten.native_dropout, x, 0.1, True))
    yield _ready(partial(aten.add, x, y))
    yield _ready(partial(aten.mul, x, y))
    yield _ready(partial(aten.sub, x, y))
    yield _ready(partial(aten.where, some, x, y))
    yield _ready(partial(aten.pow, x, 2))
    yield _ready(partial(aten.bernoulli_, x.clone(), 0.5))


def _norms(device: str, count: int) -> Iterator[Make]:
    rows, row = max(count // ROWS, 1), min(ROWS, count)
    x, g, weight, bias = (torch.randn(shape, device=device) for shape in ((rows, row), (rows, row), (row,), (row,)))
    _, mean, rstd = aten.native_layer_norm(x, [row], weight, bias, 1e-5)
    yield _ready(partial(aten.native_layer_norm, x, [row], weight, bias, 1e-5))
    yield _ready(partial(aten.native_layer_norm_backward, g, x, [row], mean, rstd, weight, bias, [True] * 3))
    p = aten._softmax(x, -1, False)
    yield _ready(partial(aten._softmax, x, -1, False))
    yield _ready(partial(aten._softmax_backward_data, g, p, -1, torch.float32))
    yield _ready(partial(aten.sum.dim_IntList, x, [0]))
    yield _ready(partial(aten.mean.dim, x, [-1], True))
    yield _ready(partial(aten.add, x, bias))


def _losses(device: str, count: int) -> Iterator[Make]:
    row = min(8 * ROWS, count)
    rows = max(count // row, 1)
    x, g = torch.randn(rows, row, device=device), torch.randn(rows, row, device=device)
    labels = torch.randint(row, (rows,), device=device)
    logs = aten._log_softmax(x, -1, False)
    loss, weight = aten.nll_loss_forward(logs, labels, None, 1, -100)
    yield _ready(partial(aten._log_softmax, x, -1, False))
    yield _ready(partial(aten._log_softmax_backward_data, g, logs, -1, torch.float32))
    yield _ready(partial(aten.nll_loss_forward, logs, labels, None, 1, -100))
    yield _ready(partial(aten.nll_loss_backward, loss, logs, labels, None, 1, -100, weight))
    table = torch.randn(max(count // 256, 1), 256, device=device)
    tokens = torch.randint(len(table), (max(count // 256, 1),), device=device)
    yield _ready(partial(aten.embedding, table, tokens))
    yield _ready(partial(aten.embedding_dense_backward, table, tokens, len(table), -1, False))
    yield _ready(partial(aten.index_select, table, 0, tokens))


def _optimizer(device: str, count: int) -> Iterator[Make]:
    p, g, m, v = (torch.rand(count, device=device) for _ in range(4))
    yield _ready(partial(aten.mul_.Tensor, m, torch.tensor(0.999, dtype=torch.float64)))
    yield _ready(partial(aten.add_.Tensor, p, g, alpha=1e-9))
    yield _ready(partial(aten.lerp_.Scalar, m, g, 1e-9))
    yield _ready(partial(aten.addcmul_, v, g, g, value=1e-9))
    yield _ready(partial(aten.sqrt, v))
    yield _ready(partial(aten.div.Tensor, v, torch.tensor(2.0, dtype=torch.float64)))
    yield _ready(partial(aten.addcdiv_, p, m, g, value=1e-9))
    yield _ready(partial(aten.zero_, p))
    yield _ready(partial(aten._foreach_norm, [p]))
    if device == "cuda":
        lists = [[t] for t in (p, g, m, v)]
        yield _ready(partial(aten._foreach_addcdiv_.Scalar, lists[0], lists[1], lists[2]))
        yield _ready(partial(aten._foreach_lerp_.Scalar, lists[2], lists[1], 1e-9))
        yield _ready(partial(aten._foreach_mul_.Scalar, lists[2], 0.999))


def _copies(device: str, count: int) -> Iterator[Make]:
    x = torch.randn(max(count // 64, 1), 64, device=device)
    yield _ready(partial(aten.clone, x))
    yield _ready(partial(aten.copy_, x.clone(), x))
    yield _ready(partial(aten.clone, x.t(), memory_format=torch.contiguous_format))
    yield _ready(partial(aten._to_copy, x, dtype=torch.bfloat16))
    yield _ready(partial(aten.cat, [x, x]))
    yield _ready(partial(aten.stack, [x, x]))
    yield _ready(partial(aten.slice_backward, x, [2 * len(x), 64], 0, 0, len(x), 1))


def _pictures(device: str, count: int) -> Iterator[Make]:
    channels = 32
    batch, side = max(count // (channels * 784), 1), 28
    if count < channels * 784:
        side = max(int((count / channels) ** 0.5), 2)
    x = torch.randn(batch, channels, side, side, device=device)
    weight, bias, mean, var = (torch.ones(channels, device=device) for _ in range(4))
    run = partial(aten.native_batch_norm, x, weight, bias, mean, var, True, 0.1, 1e-5)
    _, saved, inverse = run()
    yield _ready(run)
    yield _ready(
        partial(aten.native_batch_norm_backward, x, x, weight, mean, var, saved, inverse, True, 1e-5, [True] * 3)
    )
    yield _ready(partial(aten.native_group_norm, x, weight, bias, batch, channels, side * side, 8, 1e-5))
    _, group_mean, group_rstd = aten.native_group_norm(x, weight, bias, batch, channels, side * side, 8, 1e-5)
    yield _ready(
        partial(
            aten.native_group_norm_backward, x, x, group_mean, group_rstd, weight, batch, channels, side * side, 8,
            [True] * 3,
        )
    )  # fmt: skip
    pooled, where = aten.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])
    yield _ready(partial(aten.max_pool2d_with_indices, x, [3, 3], [2, 2], [1, 1]))
    yield _ready(
        partial(
            aten.max_pool2d_with_indices_backward, pooled, x, [3, 3], [2, 2], [1, 1], [1, 1], False, where
        )
    )  # fmt: skip
    yield _ready(partial(aten.upsample_nearest2d, x, [2 * side, 2 * side]))
    big = torch.randn(batch, channels, 2 * side, 2 * side, device=device)
    yield _ready(partial(aten.upsample_nearest2d_backward, big, [2 * side] * 2, list(x.shape)))
