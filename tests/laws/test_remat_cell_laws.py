"""Time steps computed again: gradients are those of the plain step, and its need is what the pass says."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan, Remat, check
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import replay_on
from dnnmem.profilers.apply.remat import to_model
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.laws.programs.recurrent import MODELS, STEPS, make_batch, make_loss

GPU = "h100-sxm-80gb"
SEGMENTS = ["0-7,8-15", "0-23(0-11(4-7),12-17)", "1,3,5", "20-23"]


def plan_of(segments):
    return Plan(remat=Remat(policy="segments", segments=segments, cell="cell"))


def grads(model, steps=STEPS):
    torch.manual_seed(1)
    tokens, labels = make_batch(4)
    loss = make_loss(model(tokens[:, :steps]), (tokens, labels))
    loss.backward()
    found = [loss.detach(), *(p.grad.clone() for p in model.parameters())]
    model.zero_grad()
    return found


@pytest.mark.parametrize("cell", ["lstm", "labels"])
@pytest.mark.parametrize("segments", SEGMENTS)
def test_gradients_are_equal(cell, segments):
    # GIVEN a network that calls its cell for each step, and the same with some steps computed again
    torch.manual_seed(0)
    model = MODELS[cell]()
    plain = grads(model)
    again = to_model(model, plan_of(segments))
    # THEN its gradients are the same, in the second step as well
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(plain, grads(again), strict=True))


def test_a_sequence_that_ends_within_a_run_is_refused():
    model = to_model(MODELS["lstm"](), plan_of("0-3,20-23"))
    with pytest.raises(UnsupportedError, match="ends with call 23, but the model made 22 calls"):
        grads(model, STEPS - 2)
    # AND nothing stays open behind the error
    assert len(grads(model)) > 1


def test_steps_run_as_often_as_segments_say():
    torch.manual_seed(0)
    model = MODELS["lstm"]()
    runs = []
    inner = model.cell.forward
    model.cell.forward = lambda *args: (runs.append(1), inner(*args))[1]
    grads(to_model(model, plan_of("0-7(0-3)")))
    assert len(runs) == STEPS + 8 + 4


class Damped(MODELS["lstm"]):
    """Does something to the state between two calls."""

    def forward(self, tokens):
        x = self.tokens(tokens)
        h = c = torch.zeros(len(x), x.shape[-1])
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            h, c = h * 0.5, c * 0.5
        return self.head(h)


def test_what_lies_between_calls_is_refused():
    with pytest.raises(UnsupportedError, match="cell, call 1 is not called with what cell, call 0 returned"):
        grads(to_model(Damped(), plan_of("0-3")))
    # AND a step alone is not
    assert len(grads(to_model(Damped(), plan_of("0,1,2")))) > 1


def test_what_cannot_be_is_told():
    with pytest.raises(UsageError, match="no such module"):
        to_model(nn.Linear(2, 2), plan_of("0-1"))
    with pytest.raises(UsageError, match="goes with policy segments alone"):
        check(Plan(remat=Remat(policy="full", cell="cell")))
    with pytest.raises(UsageError, match=r"beside which offload\.activations is not predicted"):
        change(plan_of("0-1"), ["offload.activations=all"])


@pytest.mark.parametrize(("cell", "segments"), [("lstm", SEGMENTS[1]), ("labels", SEGMENTS[0])])
@pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
def test_a_pass_needs_what_its_apply_needs(cell, segments, root):
    # GIVEN a recorded step, rewritten, and the plan applied on a virtual GPU
    plan, device, kept = plan_of(segments), find_device(GPU), cache_folder(os.environ)
    target, size = str(root / "tests" / "laws" / "programs" / "recurrent.py"), 8192
    asked = Request(target=target, args={"cell": cell}, batch_size=size, device="virtual", gpu=GPU)
    plain = run(asked, gpu=device, cache=kept)[0]
    held = replay_on(rewrite(plain, plan)[0], device)
    ran = verify(Request(target=target, args={"cell": cell}, batch_size=size), plan, device, cache=kept)
    # THEN the peaks agree, and are lower than the plain step's
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)
    assert held.peak_allocated_bytes < 0.9 * replay_on(plain, device).peak_allocated_bytes
