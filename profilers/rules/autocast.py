"""Autocast as on CUDA: the CPU's autocast, with CUDA's lists of operators in place of its own.

Follows torch's aten/src/ATen/autocast_mode.cpp and .h. Which operators are on CUDA's list is asked of the torch that
runs, so that its version decides; what happens to them is in the tables here. Products and convolutions are on both
lists and stay torch's own, with its cache of cast weights.

    AutocastCPU only      nothing happens
    on CUDA's list        float32 | float32 by the argument dtype | the widest type of the arguments | forbidden
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dnnmem.profilers.rules.dispatch import FALL_THROUGH, Kernels, has_kernel, kernels, operator
from dnnmem.profilers.tensors import tensors_in

_FLOAT32 = [
    "acos",
    "asin",
    "cosh",
    "erfinv",
    "exp",
    "expm1",
    "log",
    "log10",
    "log2",
    "log1p",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "softplus",
    "layer_norm",
    "native_layer_norm",
    "group_norm",
    "rms_norm",
    "frobenius_norm.dim",
    "nuclear_norm",
    "nuclear_norm.dim",
    "cosine_similarity",
    "poisson_nll_loss",
    "cosine_embedding_loss",
    "nll_loss",
    "nll_loss2d",
    "hinge_embedding_loss",
    "kl_div",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "mse_loss",
    "margin_ranking_loss",
    "multilabel_margin_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "multi_margin_loss",
    "binary_cross_entropy_with_logits",
    "dist",
    "pdist",
    "cdist",
    "renorm",
    "logsumexp",
    "upsample_nearest1d",
    "_upsample_nearest_exact1d",
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_nearest3d",
    "_upsample_nearest_exact3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_trilinear3d",
    "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
    "linalg_matrix_sqrth",
    "norm.Scalar",
    "norm.ScalarOpt_dim",
]
_DTYPE = [
    "prod",
    "prod.dim_int",
    "softmax.int",
    "log_softmax.int",
    "cumprod",
    "cumsum",
    "linalg_vector_norm",
    "linalg_matrix_norm",
    "linalg_matrix_norm.str_ord",
    "sum",
    "sum.dim_IntList",
]
_WIDEST = [
    "addcdiv",
    "addcmul",
    "atan2",
    "bilinear",
    "cross",
    "dot",
    "vdot",
    "grid_sampler",
    "index_put",
    "tensordot",
    "scatter_add",
    "cat",
    "stack",
    "index_copy",
]
_KEY = "AutocastCPU"
_THEIRS = "AutocastCUDA"


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Let `torch.autocast("cuda", ...)` act on CPU tensors as it does on a GPU's."""
    with ExitStack() as stack:
        stack.enter_context(kernels(_kernels()))
        for patcher in _patches():
            stack.enter_context(patcher)
        _holding.append(True)
        stack.callback(_holding.pop)
        yield


def autocast_device(device: torch.device) -> str:
    """What `torch.autocast` calls a model's device; in a fake run for a GPU that is not where its tensors say."""
    return "cuda" if _holding else device.type


_holding: list[bool] = []


def _kernels() -> Kernels:
    made: dict[tuple[str, str], Callable[..., Any]] = {
        (name, _KEY): FALL_THROUGH
        for name in torch._C._dispatch_get_registrations_for_dispatch_key(_KEY)
        if name.startswith("aten::") and not has_kernel(name, _THEIRS)
    }
    for policy, names in ((_to_float32, _FLOAT32), (_by_dtype, _DTYPE), (_to_widest, _WIDEST)):
        for name in names:
            op = operator(name)
            if op is not None and has_kernel(f"aten::{name}", _THEIRS):
                made[f"aten::{name}", _KEY] = policy(op)
    made["aten::binary_cross_entropy", _KEY] = _forbidden
    return made


def without_autocast() -> Any:
    """A context in which autocast does not act, though it is on."""
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU))


def _is_cast(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype is not torch.float64


def _to_float32(op: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with without_autocast():
            args, kwargs = tree_map_only(Tensor, lambda x: x.float() if _is_cast(x) else x, (args, kwargs))
            return op(*args, **kwargs)

    return run


def _by_dtype(op: Any) -> Callable[..., Any]:
    """The input stays; the operator is asked for a float32 result. softmax of float16 reads it so without a copy."""
    names = [argument.name for argument in op._schema.arguments]
    place = names.index("dtype")
    keyword = op._schema.arguments[place].kwarg_only

    def run(*args: Any, **kwargs: Any) -> Any:
        with without_autocast():
            given = args[place] if len(args) > place else kwargs.get("dtype")
            if given is not None or not _is_cast(args[0]):
                return op(*args, **kwargs)
            direct = _HALF_TO_FLOAT.get(op)
            if direct is not None and args[0].dtype is torch.float16:
                return direct(*args[:2], True)  # noqa: FBT003
            if keyword or len(args) <= place:
                return op(*args, **{**kwargs, "dtype": torch.float32})
            return op(*args[:place], torch.float32, *args[place + 1 :], **kwargs)

    return run


_HALF_TO_FLOAT = {
    torch.ops.aten.softmax.int: torch.ops.aten._softmax.default,
    torch.ops.aten.log_softmax.int: torch.ops.aten._log_softmax.default,
}


def _to_widest(op: Any) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with without_autocast():
            kinds = {x.dtype for x in tensors_in((*args, *kwargs.values())) if _is_cast(x)}
            if len(kinds) > 1:
                args, kwargs = tree_map_only(Tensor, lambda x: x.float() if _is_cast(x) else x, (args, kwargs))
            return op(*args, **kwargs)

    return run


def _forbidden(*_: Any, **__: Any) -> Any:
    raise RuntimeError(
        "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast on CUDA; "
        "use binary_cross_entropy_with_logits or torch.nn.BCEWithLogitsLoss"
    )


def _patches() -> Iterator[Any]:
    """Torch's Python functions about autocast take CUDA for the CPU."""
    for name in ("is_autocast_enabled", "set_autocast_enabled", "set_autocast_dtype"):
        yield patch.object(torch, name, _renamed(getattr(torch, name)))
    yield patch.object(torch, "get_autocast_dtype", _dtype_of(torch.get_autocast_dtype))
    yield patch.object(torch, "get_autocast_gpu_dtype", lambda: torch.get_autocast_dtype("cuda"))
    autocast: Any = torch.amp.autocast_mode.autocast
    yield patch.object(autocast, "__init__", _on_cpu(autocast.__init__))


def _renamed(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(device_type: str = "cuda", *args: Any) -> Any:
        return function("cpu" if device_type == "cuda" else device_type, *args)

    return run


def _dtype_of(get: Callable[[str], torch.dtype]) -> Callable[[str], torch.dtype]:
    """CUDA's default is float16, the CPU's bfloat16."""

    def run(device_type: str) -> torch.dtype:
        if device_type != "cuda":
            return get(device_type)
        return get("cpu") if torch._C.is_autocast_enabled("cpu") else torch.float16

    return run


def _on_cpu(initialize: Callable[..., None]) -> Callable[..., None]:
    def run(self: Any, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        initialize(self, device_type, dtype, *args, **kwargs)

    return run
