"""Linear layers in 8 bits: what the pass says is what torchao's layers need; gradients are the plain step's, rounded.

float8_e4m3 keeps 4 bits of a number and e5m2, of gradients, 3: a few layers are allowed twice what the latter rounds.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.float8 import check_rows
from dnnmem.estimator.plan import Plan, Precision
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import replay_on
from dnnmem.estimator.trace import Kind, Origin
from dnnmem.profilers.apply.precision import to_model
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.conftest import ROOT
from tests.estimator.passes.steps import LLAMA, gpt

WITHIN = 2**-2
GPU = "h100-sxm-80gb"
REQUEST = Request(
    target=str(ROOT / "sample_models" / "gpt.py"), batch_size=16, seq_len=256,
    args={"layers": "4", "width": "512", "heads": "8", "vocab": "512", "context": "256"},
)  # fmt: skip
"""Few words, so that its layers and not its logits need most."""
FLOAT8 = Plan(precision=Precision(linear="float8"))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(3))
        self.head = nn.Linear(32, 1)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def gradients(plan):
    torch.manual_seed(0)
    model = to_model(Stack(), plan)
    loss = model(torch.randn(16, 32)).square().mean()
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("compute", [None, "bf16_amp"])
def test_gradients_are_those_of_the_plain_step_rounded(compute):
    pytest.importorskip("torchao")
    plain, found = gradients(Plan()), gradients(Plan(precision=Precision(compute=compute, linear="float8")))
    assert float(found[0]) == pytest.approx(float(plain[0]), rel=WITHIN)
    assert 0 < float((found[1] - plain[1]).norm() / plain[1].norm()) <= WITHIN


@pytest.mark.parametrize(
    "settings",
    [
        ("precision.linear=float8",),
        ("precision.linear=float8", "precision.compute=bfloat16"),
        ("precision.linear=float8", "precision.compute=bf16_amp"),
        ("precision.linear=float8", "remat.policy=full"),
    ],
    ids=" ".join,
)
@pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
def test_layers_in_8_bits_need_what_the_pass_says(settings):
    # GIVEN a plain step  WHEN its linear layers multiply in 8 bits, and torchao's really do
    pytest.importorskip("torchao")
    plan, device, kept = change(Plan(), settings), find_device(GPU), cache_folder(os.environ)
    asked = replace(REQUEST, device="fake", gpu=GPU, compute=plan.precision.compute)
    [found] = rewrite(run(asked, gpu=device, cache=kept)[0], plan)
    held = replay_on(found, device)
    ran = verify(REQUEST, plan, device, cache=kept)
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.01)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)


@pytest.mark.parametrize("arguments", [{}, LLAMA], ids=["biases", "none"])
def test_products_are_the_same_and_nothing_rests_in_8_bits(arguments):
    # GIVEN a step  WHEN its linear layers multiply in 8 bits
    [plain], [found] = rewrite(gpt(**arguments), Plan()), rewrite(gpt(**arguments), FLOAT8)
    found.check()
    # THEN all of them but the head's do, and what lasts is as it was
    assert sum(op.flops for op in found.ops) == sum(op.flops for op in plain.ops)
    left = [op for op in found.ops if op.name.startswith(("aten.mm", "aten.addmm"))]
    assert {op.module for op in left} == {("head",)}
    assert found.pinned_bytes() == plain.pinned_bytes()


def test_what_cannot_be_is_refused():
    old = replace(gpt(), origin=Origin(gpu="a100-sxm-80gb"))
    with pytest.raises(UnsupportedError, match=r"8\.0"):
        rewrite(old, FLOAT8)
    pytest.importorskip("torchao")
    with pytest.raises(UnsupportedError, match="no linear layers in blocks"):
        to_model(nn.Sequential(nn.Linear(8, 24)), FLOAT8)


def test_rows_that_are_no_sixteens_are_refused():
    with pytest.raises(UnsupportedError, match="is given 8 rows"):
        check_rows(8, "up")
    pytest.importorskip("torchao")
    model = to_model(Stack(), FLOAT8)
    with pytest.raises(UnsupportedError, match=r"blocks\.0\.0 is given 8 rows"):
        model(torch.randn(8, 32))


@pytest.mark.parametrize("arguments", [{}, LLAMA], ids=["biases", "none"])
def test_under_autocast_no_copies_of_weights_are_kept(arguments):
    # GIVEN a step under autocast  WHEN its linear layers multiply in 8 bits
    autocast = Plan(precision=Precision(compute="bf16_amp"))
    [plain], [found] = (
        rewrite(gpt(**arguments), plan)
        for plan in (autocast, Plan(precision=Precision(compute="bf16_amp", linear="float8")))
    )
    found.check()
    # THEN weights of blocks go to 8 bits as they are, and the gradients stay what they were
    copied = [
        {op.module for op in t.ops if op.name.startswith("aten._to_copy") and copies_a_weight(t, op)}
        for t in (plain, found)
    ]
    assert copied[1] == {("head",)} < copied[0]
    assert found.pinned_bytes() == plain.pinned_bytes()


def copies_a_weight(trace, op):
    """Whether a forward op makes a bfloat16 copy of a matrix of parameters."""
    read, made = trace.storages[op.reads[0]], trace.storages[op.writes[0]]
    return read.kind is Kind.PARAM and len(read.shape) == 2 and made.dtype == "bfloat16"
