"""Attention, fused and written by hand, against formulas derived by hand, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from dnnmem.profilers.flops import masked_flops, op_cost
from tests.profilers.costs import aten, forward_and_backward, meta

SIZE = st.integers(1, 6)


def attention_flops(pairs, width, value_width):
    """Forward and backward of the fused operator, where the scores are computed again."""
    return 2 * pairs * (width + value_width), 2 * pairs * (3 * width + 2 * value_width)


@given(batch=SIZE, heads=SIZE, queries=SIZE, keys=SIZE, width=SIZE, causal=st.booleans())
def test_cpu_attention_counts_its_products(batch, heads, queries, keys, width, causal):
    # GIVEN self- or cross-attention, causal or not
    def build():
        q = torch.randn(batch, heads, queries, width, requires_grad=True)
        k, v = (torch.randn(batch, heads, keys, width, requires_grad=True) for _ in "kv")
        return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    # THEN two products forward, five backward, and causality does not halve them
    assert forward_and_backward(build) == attention_flops(batch * heads * queries * keys, width, width)


@given(batch=SIZE, heads=SIZE, queries=SIZE, keys=SIZE, width=SIZE, value_width=SIZE)
def test_attention_written_by_hand_counts_its_products(batch, heads, queries, keys, width, value_width):
    def build():
        q = torch.randn(batch, heads, queries, width, requires_grad=True)
        k = torch.randn(batch, heads, keys, width, requires_grad=True)
        v = torch.randn(batch, heads, keys, value_width, requires_grad=True)
        return lambda: (q @ k.mT).softmax(-1) @ v

    # THEN nothing is computed again: four products backward
    forward = 2 * batch * heads * queries * keys * (width + value_width)
    assert forward_and_backward(build) == (forward, 2 * forward)


def test_the_math_path_counts_what_it_runs():
    # GIVEN a mask and dropout, which no fused CPU kernel serves
    def build():
        q = torch.randn(2, 4, 16, 8, requires_grad=True)
        mask = torch.ones(16, 16, dtype=torch.bool)
        return lambda: functional.scaled_dot_product_attention(q, q, q, attn_mask=mask, dropout_p=0.1)

    forward = 2 * 2 * 4 * 16 * 16 * (8 + 8)
    assert forward_and_backward(build) == (forward, 2 * forward)


def test_grouped_heads_count_by_query_heads():
    def build():
        q, kv = torch.randn(2, 8, 16, 4, requires_grad=True), torch.randn(2, 2, 16, 4, requires_grad=True)
        return lambda: functional.scaled_dot_product_attention(q, kv, kv, enable_gqa=True)

    assert forward_and_backward(build) == attention_flops(2 * 8 * 16 * 16, 4, 4)


# B batch, H heads, S queries, T keys, D width
B, H, S, T, D = 2, 4, 16, 32, 8
Q, K = (B, H, S, D), (B, H, T, D)
FORWARD, BACKWARD = attention_flops(B * H * S * T, D, D)


@pytest.mark.parametrize(
    "name", ["flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"]
)
def test_every_fused_attention_counts_the_same(name):
    q, k = meta(*Q), meta(*K)
    for suffix, args, expected in (("", (q, k, k), FORWARD), ("_backward", (q, q, k, k), BACKWARD)):
        func = getattr(aten, f"_scaled_dot_product_{name}{suffix}").default
        assert op_cost(func, args, {}, None)[0] == expected


def test_attention_below_sdpa_counts_the_same_packed_or_not():
    # GIVEN (batch, sequence, heads, width), or the same tokens packed into one sequence with cumulative lengths
    q, k = meta(B, S, H, D), meta(B, T, H, D)
    packed_q, packed_k = q.flatten(0, 1), k.flatten(0, 1)
    lengths = meta(B + 1, dtype=torch.int32)
    plain, packed = (None, None, S, T), (lengths, lengths, S, T)
    flash, flash_backward = aten._flash_attention_forward.default, aten._flash_attention_backward.default
    efficient, efficient_backward = (
        aten._efficient_attention_forward.default,
        aten._efficient_attention_backward.default,
    )
    # WHEN they are dispatched below scaled_dot_product_attention  THEN the count is that of SDPA
    for func, args in (
        (flash, (q, k, k, *plain)),
        (flash, (packed_q, packed_k, packed_k, *packed)),
        (efficient, (q, k, k, None, *plain)),
        (efficient, (packed_q[None], packed_k[None], packed_k[None], None, *packed)),
    ):
        assert op_cost(func, args, {}, None)[0] == FORWARD
    for func, args in (
        (flash_backward, (q, q, k, k, q, None, *plain)),
        (flash_backward, (packed_q, packed_q, packed_k, packed_k, packed_q, None, *packed)),
        (efficient_backward, (q, q, k, k, None, q, *plain)),
        (efficient_backward, (packed_q[None], packed_q[None], packed_k[None], packed_k[None], None, q, *packed)),
    ):
        assert op_cost(func, args, {}, None)[0] == BACKWARD


@pytest.mark.parametrize(("s", "t", "hidden"), [(16, 16, 120), (16, 32, 376), (32, 16, 120)])
def test_a_causal_kernel_skips_what_lies_above_the_diagonal(s, t, hidden):
    # GIVEN causal attention of S queries over T keys, forward and backward  WHEN asked  THEN those scores are masked
    q, k = meta(B, H, s, D), meta(B, H, t, D)
    flash, backward = (
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_backward.default,
    )
    none = (None,) * 4
    assert masked_flops(flash, (q, k, k, 0.0, True), {}, s * t) == hidden
    assert masked_flops(flash, (q, k, k), {"is_causal": True}, s * t) == hidden
    assert masked_flops(backward, (q, q, k, k, q, *none[:3], s, t, 0.0, True), {}, s * t) == hidden
    assert masked_flops(flash, (q, k, k, 0.0, False), {}, s * t) == 0


def test_no_other_op_skips():
    # GIVEN a product, and attention spelled out  WHEN asked  THEN a mask saves nothing
    x = meta(8, 8)
    assert masked_flops(aten.mm.default, (x, x), {}, 1024) == 0
