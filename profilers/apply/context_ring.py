"""Attention over ranks that have a part of the sequence each: torch's own ring, kernel by kernel.

    q0 k0 v0 -> out, logsumexp        k, v of the next rank arrive meanwhile -> out1, logsumexp1 -> merged -> ...

`all_gather` gets all keys and values at once, `ring` passes them on; gradients of keys and values always go around.
After torch.distributed.tensor.experimental (context parallelism, torch 2.9 and later), whose loop takes any kernel that
returns a logsumexp: on the GPU flash, memory-efficient and cuDNN's, on the CPU its own flash kernel, by which gradients
can be compared without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnnmem.profilers.apply.context_share import Share, refuse

_ATEN = torch.ops.aten
_PLACES = (
    "torch.distributed.tensor.experimental._context_parallel._attention",
    "torch.distributed.tensor.experimental._attention",
)
"""Where torch has its ring, newest first."""


class Kernel(NamedTuple):
    """An attention kernel with a logsumexp."""

    forward: Any
    """(q, k, v, ...) -> out, logsumexp, rest."""
    backward: Any
    """Its gradients."""
    gradient: str
    """What `backward` calls the gradient of out."""
    added: dict[str, Any]
    """What `forward` takes besides."""
    rest: tuple[str, ...]
    """What `backward` calls the rest, by its place; empty: it does not take that."""


FLASH = Kernel(
    _ATEN._scaled_dot_product_flash_attention.default, _ATEN._scaled_dot_product_flash_attention_backward.default,
    "grad_out", {}, ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "philox_seed", "philox_offset", ""),
)  # fmt: skip
EFFICIENT = Kernel(
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_efficient_attention_backward.default,
    "grad_out_", {"attn_bias": None, "compute_log_sumexp": True}, ("philox_seed", "philox_offset"),
)  # fmt: skip
CUDNN = Kernel(
    _ATEN._scaled_dot_product_cudnn_attention.default, _ATEN._scaled_dot_product_cudnn_attention_backward.default,
    "grad_out", {"attn_bias": None, "compute_log_sumexp": True},
    ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "philox_seed", "philox_offset", ""),
)  # fmt: skip
CPU = Kernel(
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default,
    "grad_out", {}, (),
)  # fmt: skip
_BACKENDS = {1: FLASH, 2: EFFICIENT, 3: CUDNN}
"""By torch's number (`SDPBackend`)."""


@cache
def ring_of_torch() -> Any:
    """The module that has it. Raises `UnsupportedError` for a torch without one."""
    for place in _PLACES:
        try:
            found = import_module(place)
        except ImportError:
            continue
        if "group" in getattr(found._templated_ring_attention, "__annotations__", {}):
            return found
    raise refuse(
        f"all_gather and ring are done by torch's own ring attention, as of torch 2.9; this is {torch.__version__}",
        "--set context.method=ulysses",
    )


@contextmanager
def _options(share: Share, *, causal: bool) -> Iterator[Any]:
    """Torch's ring, told what to do: its options are the process's."""
    ring = ring_of_torch()
    options = ring._cp_options
    before = options.rotate_method, options.enable_load_balance
    methods = ring._RotateMethod
    options.rotate_method = methods.ALL_GATHER if share.method == "all_gather" else methods.ALL_TO_ALL
    options.enable_load_balance = causal
    try:
        yield ring
    finally:
        options.rotate_method, options.enable_load_balance = before


def ring_attention(
    share: Share, q: Tensor, k: Tensor, v: Tensor, *, dropout: float, causal: bool, scale: float | None, gqa: bool
) -> Tensor:
    """(B, H, T / cp, D) queries, keys and values of this rank to what they attend to among all."""
    kernel = _kernel(q, k, v, dropout=dropout, causal=causal, scale=scale, gqa=gqa)
    if kernel is not FLASH and k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    found: Tensor = _Ring.apply(q, k, v, share, kernel, {"dropout": dropout, "causal": causal, "scale": scale})
    return found


def _kernel(q: Tensor, k: Tensor, v: Tensor, *, dropout: float, causal: bool, scale: float | None, gqa: bool) -> Kernel:
    """The one that plain attention would take."""
    if q.device.type == "cpu":
        return CPU
    choice = torch._fused_sdp_choice(q, k, v, None, dropout, causal, scale=scale, enable_gqa=gqa)
    if choice not in _BACKENDS:
        raise refuse(
            f"attention over {tuple(q.shape)} in {q.dtype} has no fused kernel, and only those can be put together "
            "from parts",
            "--set precision.compute=bfloat16, or context.method=ulysses",
        )
    return _BACKENDS[choice]


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - a context, tensors, and what is no tensor
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, share: Share, kernel: Kernel, options: dict[str, Any]
    ) -> Tensor:
        causal, dropout, scale = options["causal"], options["dropout"], options["scale"]
        with _options(share, causal=causal) as ring:
            out, logsumexp, *rest = ring._templated_ring_attention(
                share.group, 2, kernel.forward, q, k, v, is_causal=causal, dropout_p=dropout, scale=scale,
                **kernel.added,
            )  # fmt: skip
        named = {name: one for name, one in zip(kernel.rest, rest, strict=False) if name}
        kept = {name: one for name, one in named.items() if isinstance(one, Tensor)}
        ctx.save_for_backward(q, k, v, out, logsumexp, *kept.values())
        ctx.names, ctx.share, ctx.kernel = tuple(kept), share, kernel
        ctx.added = {"dropout_p": dropout, "scale": scale}
        ctx.added.update((name, one) for name, one in named.items() if name not in kept)
        ctx.causal = causal
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logsumexp, *kept = ctx.saved_tensors
        added = {**ctx.added, **dict(zip(ctx.names, kept, strict=True))}
        if ctx.kernel is EFFICIENT:
            added |= {"attn_bias": None, "grad_input_mask": [True, True, True, False]}
        if ctx.kernel is CUDNN:
            added |= {"attn_bias": None}
        with _options(ctx.share, causal=ctx.causal) as ring:
            found = ring._templated_ring_attention_backward(
                ctx.share.group, 2, ctx.kernel.backward, gradient, ctx.kernel.gradient, q, k, v, out, logsumexp,
                ctx.causal, **added,
            )  # fmt: skip
        return (*found[:3], None, None, None)
