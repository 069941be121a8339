"""The recorder on models that it was not tuned on: the trace is the bare run's list of events, and every byte is owned.

`benchmarks/recorder_rows.py` does the same for all of them. On a machine without a GPU,
`profilers/virtual_gpu/test_gpu_tests.py` runs this file on a virtual one.
"""

from __future__ import annotations

import difflib
from collections import Counter

import pytest

from dnnmem.estimator.trace import Origin, Phase
from dnnmem.profilers.cuda import profile_cuda
from tests.accuracy.unseen.compare import compare
from tests.accuracy.unseen.models import AUTOCAST, QUICK, UNSEEN, unseen_target

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", QUICK)
def test_the_trace_is_what_the_allocator_did_when_nobody_watched(name):
    # GIVEN a step run bare and recorded  WHEN both are compared
    found = compare(unseen_target(name), autocast=name in AUTOCAST)
    # THEN allocations and frees are the same, one by one
    assert found.bare == found.told, "\n".join(
        difflib.unified_diff([*map(str, found.bare)], [*map(str, found.told)], n=1, lineterm="")
    )
    # AND played from process start they reserve the same memory, of which hardly a byte has no owner
    assert found.replayed_bytes == found.reserved_bytes
    assert found.unlabelled < 0.01


def test_a_gradient_of_gradients_belongs_to_the_modules_that_it_goes_through():
    # GIVEN six equal blocks, and a loss with their own gradients in it
    trace, _ = profile_cuda(
        unseen_target("gradient_penalty"), steps=3, repeats=0, origin=Origin(), timed=False, on_step=lambda _: None
    )
    # WHEN the operators of the backward passes are counted by module
    counts = Counter(op.module for op in trace.ops if op.phase is Phase.BACKWARD)
    # THEN the blocks have equally many, several times those of one pass
    assert {counts[str(i), "1"] for i in range(6)} == {counts["0", "1"]}
    assert counts["0", "1"] > 20


def test_the_quick_ones_are_of_all_kinds():
    assert set(QUICK) < set(UNSEEN)
    assert AUTOCAST & set(QUICK)
