"""Prediction = execution: passes over the plain step against the same techniques really applied, on the virtual GPU."""

from __future__ import annotations

import os
from functools import cache

import pytest
import torch

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.allocator_settings import parse_settings
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Batch, Mesh, Plan, Precision, Remat, Sharding, Tensor
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Origin
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.ranks import ScriptRun, run_script
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.estimator.passes.steps import sample
from tests.laws.programs.sizes import BATCH, MODEL, SEQ
from tests.profilers.recorded import loss_step, target_of

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
GPU = "h100-sxm-80gb"
SEGMENTS = "expandable_segments:True"
"""As torchtitan has it: what is reserved hangs less on the order of frees within an op."""
WAYS = {
    "fsdp": (("root", "none", "1"), {}),
    "fsdp, full recompute, split root": (("split", "full", "1"), {"remat": Remat(policy="full")}),
    "fsdp, tp": (
        ("root", "none", "2"),
        {"tensor": Tensor(sequence_parallel=True, keep_gathered=True, loss_parallel=True)},
    ),
}


@cache
def plain_step():
    """The model's step in bfloat16 on one GPU, as recorded without one."""
    gpt = sample("gpt")
    target = target_of(
        lambda: gpt.make_model(**MODEL, dtype=torch.bfloat16),
        lambda size: gpt.make_batch(size, SEQ, MODEL["vocab"]),
        loss_step(lambda model, batch: gpt.make_loss(model(batch[0]), batch)),
        gpt.make_optimizer,
        batch_size=BATCH,
    )
    origin = Origin(gpu=GPU, versions={"torch": torch.__version__})
    return profile_fake(target, steps=2, origin=origin, on_step=lambda _: None)[0]


@pytest.mark.parametrize("way", WAYS)
def test_a_pass_needs_what_its_technique_needs(way, root):
    # GIVEN 8 ranks that hold float32 parts, and compute in bfloat16
    words, choices = WAYS[way]
    tp = int(words[2])
    plan = Plan(
        mesh=Mesh(dp_shard=8 // tp, tp=tp),
        batch=Batch(keep_output=False),
        precision=Precision(param="float32", grad="float32", reduce="float32"),
        sharding=Sharding(strategy="zero3", split_root=words[0] == "split"),
        **choices,
    )
    # WHEN the plain step is rewritten, and rank 0 runs
    [found] = rewrite(plain_step(), plan)
    found.check()
    held = replay_trace(found, parse_settings(SEGMENTS))
    script = root / "tests" / "laws" / "programs" / "sharded.py"
    request = ScriptRequest(script=str(script), arguments=words, world_size=8)
    job = ScriptRun(request=request, gpu=find_device(GPU), ranks=(0,), world_size=8)
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTORCH_ALLOC_CONF": SEGMENTS}
    [ran] = run_script(job, environment, cache=cache_folder(os.environ))
    # THEN the peaks agree
    peak = ran.memory[0].steps[-1]
    assert held.peak_allocated_bytes == pytest.approx(peak.allocated_bytes, rel=0.02)
    assert held.peak_reserved_bytes == pytest.approx(peak.reserved_bytes, rel=0.02)
