"""What blocks save is on the host between their forward and backward passes; the last block's stays."""

from __future__ import annotations

import pytest

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.offload import IN, OUT, apply
from dnnmem.estimator.passes.remat import apply as remat
from dnnmem.estimator.plan import Offload, Plan, Remat
from dnnmem.estimator.trace import Lane
from tests.estimator.passes.steps import gpt, passes_peak

ALL = Plan(offload=Offload(activations="all", min_bytes=1))


def offloaded(trace, plan=ALL):
    found = apply(trace, plan)
    found.check()
    return found


def copies(trace, name):
    return [op for op in trace.ops if op.name == name]


def test_what_goes_out_comes_back():
    # GIVEN a step of four blocks
    found = offloaded(gpt(4, batch=16))
    out, back = copies(found, OUT), copies(found, IN)
    # THEN three of them send and fetch the same bytes, on lanes of their own
    assert sorted(op.moved_bytes for op in out) == sorted(op.moved_bytes for op in back)
    assert {op.module[1] for op in out} == {"0", "1", "2"}
    assert ({op.lane for op in out}, {op.lane for op in back}) == ({Lane.TO_HOST}, {Lane.TO_DEVICE})
    # AND less is alive at the peak
    assert passes_peak(found) < passes_peak(gpt(4, batch=16))


def test_small_tensors_stay():
    trace = gpt(4)
    most = max(op.moved_bytes for op in copies(offloaded(trace), OUT))
    found = offloaded(trace, Plan(offload=Offload(activations="all", min_bytes=most)))
    assert {op.moved_bytes for op in copies(found, OUT)} == {most}


def test_every_second_block():
    found = offloaded(gpt(4), Plan(offload=Offload(activations="every", every=2, min_bytes=1)))
    assert {op.module[1] for op in copies(found, OUT)} == {"1"}


def test_only_inputs_travel_where_blocks_run_again():
    found = offloaded(remat(gpt(4, batch=16), Plan(remat=Remat(policy="full"))))
    assert [op.moved_bytes for op in copies(found, OUT)] == 3 * [16 * 32 * 64 * 4]


def test_a_step_without_blocks_is_refused():
    with pytest.raises(UnsupportedError, match="finds 1 blocks"):
        apply(gpt(3), Plan(offload=Offload(activations="every", every=3)))
