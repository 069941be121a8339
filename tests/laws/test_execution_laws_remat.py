"""Prediction = execution for recomputation: what the pass says a step needs is what it needs on the virtual GPU."""

from __future__ import annotations

import os
from functools import cache

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.planners.solve import solve
from dnnmem.estimator.replay import replay_on
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = "h100-sxm-80gb"
SMALL = {"layers": "4", "width": "512", "heads": "8", "vocab": "4000"}
MODELS = {
    "gpt": {"target": "sample_models/gpt.py", "args": SMALL, "batch_size": 16, "seq_len": 512},
    "vit": {"target": "sample_models/vit.py", "batch_size": 32},
    "resnet": {"target": "sample_models/resnet.py", "batch_size": 32},
}
WAYS = {
    "full": Remat(policy="full"),
    "every second": Remat(policy="every", every=2),
    "selective": Remat(policy="selective"),
    "attention": Remat(policy="attention"),
    "segments": Remat(policy="segments", segments="0-3(1-2)"),
    "ops": Remat(policy="ops", keep="addmm.0.2,attention"),
    "ops by block": Remat(policy="ops", keep="0:all/1-2:addmm.2,native_layer_norm,gelu/3:input"),
    "all that takes long": Remat(policy="ops", keep="products"),
    "convolutions": Remat(policy="ops", keep="convolution"),
}
CASES = [
    *(("gpt", way) for way in WAYS if way not in ("convolutions", "all that takes long")),
    *(("vit", way) for way in ("full", "selective", "attention", "ops")),
    *(("resnet", way) for way in ("full", "convolutions", "all that takes long")),
]


@cache
def plain_step(model, root):
    """The step as recorded without a GPU."""
    asked = {**MODELS[model], "target": str(root / MODELS[model]["target"])}
    return run(Request(**asked, device="fake", gpu=GPU), gpu=find_device(GPU), cache=cache_folder(os.environ))[0]


@pytest.mark.parametrize(("model", "way"), CASES)
def test_a_pass_needs_what_its_apply_needs(model, way, root):
    # GIVEN a recorded step, rewritten
    plan = Plan(remat=WAYS[way])
    [found] = rewrite(plain_step(model, root), plan)
    held = replay_on(found, find_device(GPU))
    # WHEN the plan is applied to the model, and its steps are made on a virtual GPU
    asked = Request(**{**MODELS[model], "target": str(root / MODELS[model]["target"])})
    ran = verify(asked, plan, find_device(GPU), cache=cache_folder(os.environ))
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_planned_ops_keep_their_budget_when_they_run(share, root):
    # GIVEN a plan for a budget
    trace = plain_step("resnet", root)
    budget = int(share * replay_on(trace, find_device(GPU)).peak_reserved_bytes)
    plan = solve(trace, budget, "hierarchical").plan
    # WHEN it runs on a virtual GPU  THEN it needs no more
    asked = Request(**{**MODELS["resnet"], "target": str(root / MODELS["resnet"]["target"])})
    ran = verify(asked, plan, find_device(GPU), cache=cache_folder(os.environ))
    assert plan.remat.policy == "ops"
    assert ran.outcome == "ran", ran.message
    assert ran.peak_reserved_bytes <= budget
