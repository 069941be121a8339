"""The choice of an attention kernel is torch's own, on every kind of GPU."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dnnmem.profilers.rules.backend import Attention, Backend, Setup, choose, prefers_cudnn, wheel_cudnn

WIDTHS = (20, 40, 64, 160, 192, 200, 256, 264)
RECORDED = Path(__file__).parent / "data" / "attention_backends.txt"


def read():
    found = defaultdict(list)
    for line in RECORDED.read_text().splitlines():
        if not line.startswith("#"):
            capability, *call, chosen = line.split()
            found[capability].append((call, chosen))
    return found


def setup(capability="9.0", version=(2, 14, 1), cudnn=92400):
    major, minor = map(int, capability.split("."))
    return Setup(capability=(major, minor), torch=version, cudnn=cudnn)


def heads(kind, number, width, *, grad=False, length=64):
    return torch.empty(2, length, number, width, dtype=kind, device="meta").transpose(1, 2).requires_grad_(grad)


def attention(kind=torch.bfloat16, width=64, mask="none", dropout=0.0, causal="0", grad="0", key_heads=4):
    needs_grad = grad == "1"
    query, key, value = (heads(kind, n, width, grad=needs_grad) for n in (4, key_heads, key_heads))
    given = None
    if mask != "none":
        given = torch.empty(2, 1, 64, 64, dtype=torch.bool if mask == "bool" else kind, device="meta")
    if mask == "grad":
        given.requires_grad_()
    return Attention(
        query=query, key=key, value=value, mask=given, dropout=dropout, causal=causal == "1", gqa=key_heads != 4
    )


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0"])
def test_the_choice_is_torchs_own(capability):
    # GIVEN what torch chose on such a GPU
    recorded = read()[capability]
    assert len(recorded) == 180
    for (kind, mask, dropout, causal, grad, key_heads), chosen in recorded:
        # WHEN the rule chooses for the same calls
        for width, wanted in zip(WIDTHS, chosen, strict=True):
            if wanted != "-":
                call = attention(getattr(torch, kind), width, mask, float(dropout), causal, grad, int(key_heads))
                # THEN it is the same
                assert choose(call, setup(capability)) == int(wanted), (kind, mask, dropout, causal, grad, width)


@pytest.mark.parametrize(
    ("version", "cudnn", "capability", "preferred"),
    [
        ((2, 5, 0), 90100, "9.0", True),
        ((2, 5, 1), 90100, "9.0", False),
        ((2, 8, 0), 91002, "9.0", False),
        ((2, 9, 0), 91002, "9.0", True),
        ((2, 9, 0), 91002, "8.0", False),
        ((2, 10, 0), 91002, "9.0", False),
        ((2, 14, 1), 92400, "10.0", True),
        ((2, 14, 1), 92400, "12.0", False),
    ],
)
def test_cudnn_comes_first_where_the_version_says_so(version, cudnn, capability, preferred):
    assert prefers_cudnn(setup(capability, version, cudnn)) is preferred


@pytest.mark.parametrize(
    ("version", "key_heads", "value_heads", "kind", "wanted"),
    [
        ((2, 14, 1), 1, 1, torch.float32, Backend.EFFICIENT),
        ((2, 14, 1), 1, 1, torch.bfloat16, Backend.CUDNN),
        ((2, 14, 1), 1, 4, torch.float32, Backend.MATH),
        ((2, 14, 1), 4, 1, torch.bfloat16, Backend.MATH),
        ((2, 13, 0), 1, 1, torch.float32, Backend.MATH),
    ],
)
def test_one_head_of_keys_and_values_goes_with_many_of_queries(version, key_heads, value_heads, kind, wanted):
    # GIVEN as many heads as named, and no enable_gqa  THEN torch takes these kernels, on the virtual GPU too
    query, key, value = (heads(kind, n, 64) for n in (4, key_heads, value_heads))
    assert choose(Attention(query=query, key=key, value=value), setup(version=version)) is wanted


def test_the_users_choice_of_kernels_counts():
    with sdpa_kernel(SDPBackend.MATH):
        assert choose(attention(), setup()) is Backend.MATH
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        assert choose(attention(), setup()) is Backend.FLASH
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError, match="No available kernel"):
        choose(attention(torch.float32), setup())


def test_causal_attention_of_unequal_lengths_is_not_for_flash():
    query, key = heads(torch.float16, 4, 64, length=8), heads(torch.float16, 4, 64)
    call = Attention(query=query, key=key, value=key, causal=True)
    assert choose(call, setup("8.0")) is Backend.EFFICIENT


def test_wheels_bring_a_cudnn_for_every_version():
    assert wheel_cudnn((2, 8, 0)) == 91002
    assert wheel_cudnn((2, 99, 0)) == wheel_cudnn((2, 11, 0)) > 91500
