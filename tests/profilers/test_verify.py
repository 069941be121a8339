"""Plans really run on virtual GPUs: several at once, and those that do not fit."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change, to_json
from dnnmem.profilers.ranks import ScriptRun, run_script
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import QUIET
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.verify import verify_many
from dnnmem.profilers.verify_cuda import verified_of
from dnnmem.profilers.virtual_gpu.launch import unavailable
from tests.conftest import ROOT

GPU = "a10g"
SMALL = {"layers": "2", "width": "256", "heads": "4", "vocab": "1000", "context": "128"}
REQUEST = Request(target=str(ROOT / "sample_models" / "gpt.py"), batch_size=2, seq_len=128, args=SMALL)
needs_gpu = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")


@needs_gpu
def test_plans_are_verified_at_once_and_what_does_not_fit_says_so():
    # GIVEN a step that fits, one of far too many samples, one that cannot be applied, and a pipeline
    huge = replace(REQUEST, batch_size=1 << 16)
    split = change(Plan(), ["mesh.dp_shard=8", "sharding.strategy=zero1", "sharding.even_parts=true"])
    staged = change(Plan(), ["mesh.pp=2", "batch.micro_batch=2", "batch.accumulation=2"])
    jobs = [(REQUEST, Plan()), (huge, Plan()), (REQUEST, split), (REQUEST, staged)]
    # WHEN two run at a time
    found = dict(verify_many(jobs, find_device(GPU), workers=2, timeout_seconds=100, cache=cache_folder(os.environ)))
    # THEN the first has its peaks, and the others say what they died of, with numbers
    assert found[0].outcome == "ran"
    assert 0 < found[0].peak_allocated_bytes <= found[0].peak_reserved_bytes
    assert found[1].outcome == "out_of_memory"
    assert "out of memory in step 1 (forward" in found[1].message
    assert "GiB were asked for" in found[1].message
    assert found[2].outcome == "failed"
    assert "even_parts=true is predicted only" in found[2].message
    # AND both stages of the pipeline ran, of which the one that reserved most is told
    first, last = found[3].ranks
    assert (first.rank, last.rank) == (0, 1)
    assert first.peak_reserved_bytes != last.peak_reserved_bytes
    assert found[3].peak_reserved_bytes == max(first.peak_reserved_bytes, last.peak_reserved_bytes)


@needs_gpu
def test_ranks_write_what_they_needed(tmp_path):
    # GIVEN the program that torchrun starts on real GPUs, rank 0 of 8 of it on a virtual one
    plan = change(Plan(), ["mesh.dp_shard=8", "sharding.strategy=zero3"])
    (tmp_path / "request.json").write_text(REQUEST.to_json())
    (tmp_path / "plan.json").write_text(json.dumps(to_json(plan)))
    arguments = (str(tmp_path / "request.json"), str(tmp_path / "plan.json"), str(tmp_path))
    script = ScriptRequest(script="dnnmem.profilers.planned", is_module=True, arguments=arguments, steps=99)
    job = ScriptRun(request=script, gpu=find_device(GPU), ranks=(0,), world_size=8)
    [ran] = run_script(job, {**QUIET, **os.environ}, cache=cache_folder(os.environ))
    # THEN it says what the allocator says
    told = json.loads((tmp_path / "rank0.json").read_text())
    assert (ran.outcome, told["outcome"]) == ("ran", "ran")
    assert told["allocated_bytes"] == ran.memory[0].steps[-1].allocated_bytes
    assert told["reserved_bytes"] == ran.memory[0].reserved_bytes
    assert told["step_seconds"] > 0


def rank(number, **facts):
    return {
        "rank": number, "outcome": "ran", "message": "", "allocated_bytes": 10 * number, "reserved_bytes": 20 * number,
        "step_seconds": 1.0 / number, **facts,
    }  # fmt: skip


def test_the_rank_that_reserved_most_counts_and_the_slowest_one():
    found = verified_of([rank(1), rank(2)], 2, 0, "")
    assert (found.peak_allocated_bytes, found.peak_reserved_bytes, found.step_seconds) == (20, 40, 1.0)


@pytest.mark.parametrize(
    ("told", "code", "outcome", "says"),
    [
        ([rank(1), rank(2, outcome="out_of_memory", message="Tried 2 GiB")], 1, "out_of_memory", "rank 2: Tried 2 GiB"),
        ([rank(1)], None, "timed_out", "last words"),
        ([rank(1)], 1, "failed", "1 of 2 ranks died:\nlast words"),
    ],
)
def test_a_run_that_died_says_of_what(told, code, outcome, says):
    found = verified_of(told, 2, code, "last words")
    assert found.outcome == outcome
    assert says in found.message
    assert found.peak_reserved_bytes is None
