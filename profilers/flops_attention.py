"""How many floating-point operations a fused attention operator takes, from shapes alone.

Attention is two batched products forward, and five backward because the scores are computed again:

    forward    scores = q k'        2 B H S T D          backward   scores again   2 B H S T D
               output = p v         2 B H S T E                     dp, dv         2 B H S T E each
                                                                    dq, dk         2 B H S T D each

A causal or other mask does not reduce the count, as in `torch.utils.flop_counter`; `masked_share` says how much of it
lies above the diagonal, which causal kernels skip. H is the number of query heads: grouped key and value heads serve
several of them. Packed sequences of different lengths count every query against the longest key sequence, so that fake
and real tensors agree.

>>> import torch
>>> q, k = torch.empty(2, 8, 128, 64, device="meta"), torch.empty(2, 4, 256, 64, device="meta")
>>> ATTENTION["aten::_scaled_dot_product_flash_attention_for_cpu"]((q, k, k), None) == 2 * 2 * 8 * 128 * 256 * (64 + 64)
True
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from dnnmem.profilers.flops_products import FlopRule

# Legend: B batch, H query heads, S queries, T keys, D width of queries and keys, E width of values.
# `pairs` below is B H S T: how many scores there are.


def _forward_flops(pairs: int, d: int, e: int) -> int:
    return 2 * pairs * (d + e)


def _backward_flops(pairs: int, d: int, e: int) -> int:
    return 2 * pairs * (3 * d + 2 * e)


def _heads_first(args: tuple[Any, ...], _out: object, count: Callable[[int, int, int], int], at: int = 0) -> int:
    # (B, H, S, D): `at` is the position of the query; any batch dimensions, none included
    q, k, v = args[at : at + 3]
    *batch_heads, s, d = q.shape
    return count(int(prod(batch_heads)) * int(s) * int(k.shape[-2]), int(d), int(v.shape[-1]))


def _sequence_first(
    args: tuple[Any, ...], _out: object, count: Callable[[int, int, int], int], at: int, packed_at: int
) -> int:
    # (B, S, H, D), or packed: (sum of S, H, D) or (1, sum of S, H, D) with cumulative lengths and the longest lengths
    q, k, v = args[at : at + 3]
    cumulative, longest = args[packed_at], args[packed_at + 3]
    *batch, s, h, d = q.shape
    keys = int(k.shape[-3])
    if cumulative is not None and longest is not None:
        keys = min(keys, int(longest))
    return count(int(prod(batch)) * int(s) * int(h) * keys, int(d), int(v.shape[-1]))


def _cudnn(args: tuple[Any, ...], out: object, count: Callable[[int, int, int], int], at: int, packed_at: int) -> int:
    # (B, H, S, D) unless packed
    if args[packed_at] is None or args[at].dim() == 4:
        return _heads_first(args, out, count, at)
    return _sequence_first(args, out, count, at, packed_at)


def _rules() -> dict[str, FlopRule]:
    rules: dict[str, FlopRule] = {}
    fused = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    for name in (*fused, "fused_attention_overrideable"):
        stem = f"aten::_scaled_dot_product_{name}"
        rules[stem] = partial(_heads_first, count=_forward_flops)
        rules[f"{stem}_backward"] = partial(_heads_first, count=_backward_flops, at=1)
    for name in ("scaled_dot_product_attention", "_scaled_dot_product_attention_math"):
        rules[f"aten::{name}"] = partial(_heads_first, count=_forward_flops)
    rules["aten::_scaled_dot_product_attention_math_for_mps"] = partial(_heads_first, count=_forward_flops)
    # forward: q, k, v, cumulative lengths; the efficient kernel has a bias between, the in-place one its output first
    rules["aten::_flash_attention_forward"] = partial(_sequence_first, count=_forward_flops, at=0, packed_at=3)
    rules["aten::_flash_attention_forward_no_dropout_inplace"] = partial(
        _sequence_first, count=_forward_flops, at=1, packed_at=4
    )
    rules["aten::_efficient_attention_forward"] = partial(_sequence_first, count=_forward_flops, at=0, packed_at=4)
    rules["aten::_cudnn_attention_forward"] = partial(_cudnn, count=_forward_flops, at=0, packed_at=4)
    # backward: grad_out, q, k, v, ..., cumulative lengths
    rules["aten::_flash_attention_backward"] = partial(_sequence_first, count=_backward_flops, at=1, packed_at=6)
    rules["aten::_efficient_attention_backward"] = partial(_sequence_first, count=_backward_flops, at=1, packed_at=6)
    rules["aten::_cudnn_attention_backward"] = partial(_cudnn, count=_backward_flops, at=1, packed_at=9)
    return rules


ATTENTION: dict[str, FlopRule] = _rules()
"""Formula of each fused attention operator, by schema name."""


def masked_share(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Share of the scores that a causal mask hides: 0 without one, nearly half with as many keys as queries.

    >>> import torch
    >>> q = torch.empty(2, 8, 4, 64, device="meta")
    >>> masked_share(torch.ops.aten._scaled_dot_product_flash_attention.default, (q, q, q, 0.0, True), {})
    0.375
    """
    arguments = func._schema.arguments
    given = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
    mask = given.get("is_causal", given.get("custom_mask_type", False))
    if not mask or "query" not in given or "key" not in given:
        return 0.0
    at = -2 if "scaled_dot_product" in func._schema.name else -3
    s, t = int(given["query"].shape[at]), int(given["key"].shape[at])
    if given.get("max_q") is not None and at == -3:
        s, t = min(s, int(given["max_q"])), min(t, int(given.get("max_k", s)))
    seen = s * (s + 1) // 2 if s <= t else t * (t + 1) // 2 + (s - t) * t
    return 1 - seen / (s * t) if s * t else 0.0
