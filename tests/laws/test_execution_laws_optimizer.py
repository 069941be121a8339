"""Prediction = execution: optimizers, their kernels, accumulation and the optimizer on the host, on the virtual GPU."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

import pytest
import torch

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Batch, Offload, Optimizer, Plan
from dnnmem.estimator.replay import replay_on
from dnnmem.estimator.trace import Origin
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import resolve
from dnnmem.profilers.verify import verify
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = find_device("h100-sxm-80gb")
SIZES = {
    "gpt": Request(
        target=str(ROOT / "sample_models" / "gpt.py"), batch_size=4, seq_len=512,
        args={"layers": "3", "width": "768", "heads": "12", "vocab": "16000", "context": "512"},
    ),
    "mlp": Request(target=str(ROOT / "sample_models" / "mlp.py"), batch_size=64),
    "lstm": Request(
        target=str(ROOT / "sample_models" / "lstm.py"), batch_size=16, seq_len=64,
        args={"vocab": "4000", "width": "400"},
    ),
}  # fmt: skip
WAYS = {
    "sgd": Plan(optimizer=Optimizer(name="sgd")),
    "for_loop": Plan(optimizer=Optimizer(kernel="for_loop")),
    "fused": Plan(optimizer=Optimizer(kernel="fused")),
    "adafactor": Plan(optimizer=Optimizer(name="adafactor")),
    "adafactor, foreach": Plan(optimizer=Optimizer(name="adafactor", kernel="foreach")),
    "momentum": Plan(optimizer=Optimizer(name="momentum")),
    "lion": Plan(optimizer=Optimizer(name="lion")),
    "lamb": Plan(optimizer=Optimizer(name="lamb")),
    "lars": Plan(optimizer=Optimizer(name="lars")),
    "muon": Plan(optimizer=Optimizer(name="muon")),
    "shampoo": Plan(optimizer=Optimizer(name="shampoo")),
    "soap": Plan(optimizer=Optimizer(name="soap")),
    "galore": Plan(optimizer=Optimizer(name="galore")),
    "bfloat16": Plan(optimizer=Optimizer(state="bfloat16")),
    "float16": Plan(optimizer=Optimizer(state="float16")),
    "in backward": Plan(optimizer=Optimizer(in_backward=True)),
    "adafactor in backward": Plan(optimizer=Optimizer(name="adafactor", in_backward=True)),
    "accumulation": Plan(batch=Batch(accumulation=4)),
    "host": Plan(offload=Offload(optimizer=True)),
}
STEPS = {"shampoo": 11, "soap": 10, "galore": 201}
"""The last of these renews roots, bases or projections, as the step that is predicted does."""
ALONE = ("accumulation", "host")
"""Ways on the language model alone."""
CASES = [
    *(("mlp", way) for way in WAYS if way not in ALONE),
    *(("gpt", way) for way in ("adafactor", "adafactor, foreach", "muon", "soap", "in backward", *ALONE)),
    *(("lstm", way) for way in ("muon", "soap", "bfloat16", "in backward")),
]


@cache
def plain_step(name):
    """The step as recorded without a GPU."""
    origin = Origin(gpu=GPU.name, versions={"torch": torch.__version__})
    return profile_fake(resolve(SIZES[name]), steps=2, origin=origin, on_step=lambda _: None)[0]


@pytest.mark.parametrize(("name", "way"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_pass_needs_what_its_apply_needs(name, way):
    # GIVEN the plain step, rewritten  WHEN the plan is really applied
    plan = WAYS[way]
    [found] = rewrite(plain_step(name), plan)
    found.check()
    held = replay_on(found, GPU)
    ran = verify(replace(SIZES[name], steps=STEPS.get(way)), plan, GPU, cache=cache_folder(os.environ))
    # THEN the peaks agree
    assert ran.outcome == "ran", ran.message
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.005)
    assert held.peak_reserved_bytes == pytest.approx(ran.peak_reserved_bytes, rel=0.02)


@pytest.mark.parametrize(("name", "library"), [("adamw8bit", "torchao"), ("adamw8bit_bnb", "bitsandbytes")])
def test_8_bit_states_need_what_their_library_needs(name, library, tmp_path):
    # GIVEN torchao, whose update is compiled, or bitsandbytes
    pytest.importorskip(f"{library}.optim", reason=f"{library} is not installed")
    plan = Plan(optimizer=Optimizer(name=name))
    [found] = rewrite(plain_step("gpt"), plan)
    ran = verify(SIZES["gpt"], plan, GPU, cache=tmp_path)
    assert ran.outcome == "ran", ran.message
    held = replay_on(found, GPU)
    assert held.peak_allocated_bytes == pytest.approx(ran.peak_allocated_bytes, rel=0.01)
