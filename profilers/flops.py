"""What one aten operator costs: floating-point operations, and bytes it must move, as a dispatch mode sees the call.

Conventions, the same for real, fake and meta tensors because only shapes, strides and element types are read:

    flops   matrix products, convolutions, attention and recurrent layers; a multiply-add is two; a mask, causal or not,
            does not reduce the count; padding counts; element-wise operators, norms, softmax and reductions count 0;
            complex numbers count as real ones. Operators without a formula count 0.
    bytes   what must be read and written at least once (flops_moved.py).

An operator is counted where it is dispatched: what autograd decomposes (`linear`, `einsum`) arrives as its products.
The formulas are dnnmem's own, since those of `torch.utils.flop_counter` differ between releases and count neither CPU
attention nor recurrent layers; tests hold both equal where that one is right.

>>> import torch
>>> a, b = torch.empty(32, 64, device="meta"), torch.empty(64, 16, device="meta")
>>> op_cost(torch.ops.aten.mm.default, (a, b), {}, a @ b)
(65536, 14336)
"""

from __future__ import annotations

from typing import Any

import torch

from dnnmem.profilers.flops_attention import ATTENTION, masked_share
from dnnmem.profilers.flops_moved import BytesRule, bytes_rule
from dnnmem.profilers.flops_products import PRODUCTS, FlopRule

_FORMULAS: dict[str, FlopRule] = {**PRODUCTS, **ATTENTION}
_KNOWN: dict[torch._ops.OpOverload, tuple[FlopRule | None, BytesRule]] = {}


def op_cost(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> tuple[int, int]:
    """`(flops, moved_bytes)` of one call.

    Args: `func`, `args` and `kwargs` as `__torch_dispatch__` receives them, and the `out` that the call returned.
    """
    rules = _KNOWN.get(func)
    if rules is None:
        rules = _KNOWN[func] = (_FORMULAS.get(func._schema.name), bytes_rule(func))
    count, move = rules
    return (0 if count is None else count(args, out)), move(args, kwargs, out)


def masked_flops(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], flops: int) -> int:
    """Of the `flops` of one call, those that a causal mask hides, which fused attention skips; 0 for the others."""
    return round(flops * masked_share(func, args, kwargs)) if func._schema.name in ATTENTION else 0
