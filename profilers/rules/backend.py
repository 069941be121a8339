"""Which kernel `scaled_dot_product_attention` takes on a GPU: cuDNN's, flash, memory-efficient, or plain products.

Follows torch's aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: the first of an order of preference whose
conditions hold. What differs between versions of torch is said where it is decided.

    Setup       the GPU and the software on it        Attention       one call
    `choose`    ->  Backend
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

_HALVES = (torch.float16, torch.bfloat16)
_MOST_CUDNN = 65535


class Backend(IntEnum):
    """Numbers as in torch's `SDPBackend`."""

    MATH = 0
    FLASH = 1
    EFFICIENT = 2
    CUDNN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The GPU, and what runs on it."""

    capability: tuple[int, int]
    """Compute capability: (9, 0)."""
    torch: tuple[int, int, int]
    """Version of torch: (2, 14, 1)."""
    cudnn: int
    """Version of cuDNN as its own number: 92400."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One call; shapes are (batch, heads, length, width of a head)."""

    query: Tensor
    """What asks."""
    key: Tensor
    """What is asked."""
    value: Tensor
    """What is answered; its heads may be of another width."""
    mask: Tensor | None = None
    """Booleans, or what is added to the products; None for none."""
    dropout: float = 0.0
    """Share of the weights that is dropped."""
    causal: bool = False
    """`is_causal`: no position sees later ones."""
    gqa: bool = False
    """`enable_gqa`: keys and values may have fewer heads."""

    @property
    def needs_grad(self) -> bool:
        """True if autograd will ask for a gradient of query, key or value."""
        return torch.is_grad_enabled() and any(x.requires_grad for x in (self.query, self.key, self.value))


CUDNN_OF_WHEELS = {5: 90100, 6: 90501, 7: 90501, 8: 91002, 9: 91002, 10: 91002, 11: 91900}
"""cuDNN that the wheels of torch 2.N bring; later ones as the last. From the wheels' own requirements."""


def wheel_cudnn(version: tuple[int, int, int]) -> int:
    """CuDNN to assume for a torch that has none: the one that its CUDA wheels bring."""
    minor = min(max(version[1], min(CUDNN_OF_WHEELS)), max(CUDNN_OF_WHEELS))
    return CUDNN_OF_WHEELS[minor]


def prefers_cudnn(setup: Setup) -> bool:
    """True if cuDNN comes first: `check_prefer_cudnn_attention`.

    2.5.0 on Hopper; not from 2.5.1 to 2.8; 2.9 on Hopper and Blackwell for data centres; from 2.10 on the same, given a
    cuDNN after 9.15.0.
    """
    major, minor = setup.capability
    if setup.torch < (2, 9, 0):
        return setup.torch == (2, 5, 0) and major == 9
    if setup.torch < (2, 10, 0):
        return major in {9, 10} and minor == 0 and setup.cudnn >= 90900
    return major in {9, 10} and setup.cudnn > 91500


def choose(call: Attention, setup: Setup) -> Backend:
    """The kernel for `call`; the user's `sdpa_kernel` context counts. Raises `RuntimeError` if it leaves none."""
    for backend in _order(setup):
        if backend is Backend.MATH:
            if torch.backends.cuda.math_sdp_enabled():
                return backend
        elif _ENABLED[backend]() and _CAN[backend](call, setup):
            return backend
    raise RuntimeError("No available kernel. Aborting execution.")


def _order(setup: Setup) -> list[Backend]:
    """The order of preference: the user's if one is set, else torch's own."""
    get = getattr(torch._C, "_get_sdp_priority_order", None)
    numbers = [n for n in get() if n <= Backend.CUDNN] if get is not None else list(_DEFAULT)
    if numbers == list(_DEFAULT) and prefers_cudnn(setup):
        numbers = [Backend.CUDNN, Backend.FLASH, Backend.EFFICIENT, Backend.MATH]
    return [Backend(n) for n in numbers]


def _can_cudnn(call: Attention, setup: Setup) -> bool:
    q, k, v = call.query, call.key, call.value
    if setup.torch < (2, 5, 0) or setup.capability < (8, 0) or setup.cudnn < 90000 or not _are_half(call):
        return False
    if call.dropout and (91100 < setup.cudnn < 91400 or call.dropout * 16 != int(call.dropout * 16)):
        return False
    if torch.are_deterministic_algorithms_enabled() or (call.mask is not None and call.mask.requires_grad):
        return False
    if not (_is_dense(call, setup) and _have_unit_stride(call, but_single=True)) or max(q.shape[:2]) > _MOST_CUDNN:
        return False
    if k.shape[-2] == 1 or (call.dropout and q.shape[-2] == 1) or q.shape[-1] % 8 or v.shape[-1] % 8:
        return False
    return _cudnn_takes(q.shape[-1], v.shape[-1], setup, needs_grad=call.needs_grad)


def _cudnn_takes(width: int, value_width: int, setup: Setup, *, needs_grad: bool) -> bool:
    """True if cuDNN has kernels for these widths of a head; widths to 256 came with its front end in torch 2.13."""
    major, minor = setup.capability
    most, is_new = 128, (major, minor) == (9, 0) or major == 10
    if is_new and setup.cudnn > 92200 and setup.torch >= (2, 13, 0):
        most = 256
        pairs = ((192, 128), (256, 256))
        if needs_grad and max(width, value_width) > 128 and (width, value_width) not in pairs:
            return False
    elif is_new and setup.cudnn >= 91100 and (width, value_width) == (192, 128):
        most = 192
    return max(width, value_width) <= most


def _can_flash(call: Attention, setup: Setup) -> bool:
    q, k, v = call.query, call.key, call.value
    width = q.shape[-1]
    if setup.capability < (8, 0) or call.mask is not None or not _are_half(call):
        return False
    if not width == k.shape[-1] == v.shape[-1] or width > 256:
        return False
    if call.needs_grad and setup.capability in {(8, 6), (8, 7), (8, 8), (8, 9), (12, 0), (12, 1)}:
        takes = width <= 192 or (not call.dropout and width > 224)
        if not takes and not (setup.torch < (2, 7, 0) and setup.capability >= (12, 0)):
            return False
    if call.causal and q.shape[-2] != k.shape[-2]:
        return False
    return _is_dense(call, setup) and _have_unit_stride(call, but_single=True)


def _can_efficient(call: Attention, setup: Setup) -> bool:
    q, k, v = call.query, call.key, call.value
    if setup.capability < (5, 0) or q.dim() != 4:
        return False
    if q.dtype is not torch.float32 and q.dtype not in (_HALVES if setup.capability >= (8, 0) else _HALVES[:1]):
        return False
    aligned = _alignment(q.dtype, setup.capability)
    if q.shape[-1] != k.shape[-1] or q.shape[-1] % aligned or v.shape[-1] % aligned:
        return False
    gqa = call.gqa and setup.torch < (2, 12, 0)
    return not gqa and _is_dense(call, setup) and _have_unit_stride(call, but_single=False)


def _alignment(kind: torch.dtype, capability: tuple[int, int]) -> int:
    """Multiple that the width of a head must be: `minimum_gemm_alignment`."""
    half = kind in _HALVES
    least = 4 if capability >= (8, 0) else 1
    if capability >= (8, 0) or (capability >= (7, 0) and half):
        least = max(least, 128 // (16 if half else 32))
    return least


def _are_half(call: Attention) -> bool:
    return all(x.dtype in _HALVES and x.dtype is call.query.dtype for x in (call.query, call.key, call.value))


def _is_dense(call: Attention, setup: Setup) -> bool:
    """True for four dimensions, no empty sequence, and heads that agree or divide under `enable_gqa`.

    From torch 2.14 one head of keys and values goes with any number of queries' without that.
    """
    q, k, v = call.query, call.key, call.value
    if any(x.dim() != 4 or x.shape[-2] == 0 for x in (q, k, v)) or not q.shape[0] == k.shape[0] == v.shape[0]:
        return False
    heads = q.shape[1], k.shape[1], v.shape[1]
    if call.gqa or (setup.torch >= (2, 14, 0) and heads[1] == heads[2] == 1):
        return heads[1] == heads[2] and heads[1] > 0 and heads[0] % heads[1] == 0
    return heads[0] == heads[1] == heads[2]


def _have_unit_stride(call: Attention, *, but_single: bool) -> bool:
    """True if the last dimension is contiguous in all of them; where `but_single`, one of length 1 counts as such."""
    tensors = [call.query, call.key, call.value, *([call.mask] if call.mask is not None else [])]
    return all(x.stride(-1) == 1 or (but_single and x.shape[-1] == 1) for x in tensors)


_DEFAULT = (Backend.FLASH, Backend.EFFICIENT, Backend.MATH, Backend.CUDNN)
_ENABLED: dict[Backend, Callable[[], bool]] = {
    Backend.FLASH: torch.backends.cuda.flash_sdp_enabled,
    Backend.EFFICIENT: torch.backends.cuda.mem_efficient_sdp_enabled,
    Backend.CUDNN: lambda: bool(torch.backends.cuda.cudnn_sdp_enabled()),
}
_CAN: dict[Backend, Callable[[Attention, Setup], Any]] = {
    Backend.FLASH: _can_flash,
    Backend.EFFICIENT: _can_efficient,
    Backend.CUDNN: _can_cudnn,
}
