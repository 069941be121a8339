"""Time steps are told from how ops repeat."""

from __future__ import annotations

from collections import Counter

import pytest

from dnnmem.estimator.block_list import block_lists
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes import remat
from dnnmem.estimator.passes.draft import lives
from dnnmem.estimator.passes.time_steps import as_steps, calls_of_cell, cell_of, longest_repetition, time_steps
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.trace import Phase
from tests.estimator.planners.recurrent import unrolled
from tests.laws.programs.recurrent import STEPS


@pytest.mark.parametrize(
    ("text", "found"),
    [("abc", (0, 1, 0)), ("aaaa", (0, 1, 4)), ("xabcabcabcy", (1, 3, 9)), ("ababxcdcdcdcd", (5, 2, 8))],
)
def test_the_longest_repetition(text, found):
    assert longest_repetition(text) == found


@pytest.mark.parametrize("cell", ["lstm", "tanh", "labels"])
def test_every_time_step_is_found(cell):
    trace = unrolled(cell)
    owners = time_steps(trace)
    forward = Counter(t for op, t in zip(trace.ops, owners, strict=True) if op.phase is Phase.FORWARD)
    # GIVEN a cell that is called 24 times  THEN as many steps, of equally many ops
    assert sorted(t for t in forward if t is not None) == list(range(STEPS))
    assert len({forward[t] for t in range(STEPS)}) == 1
    # AND backward passes come in reverse, and read what their own step made, or the one before
    backward = [t for op, t in zip(trace.ops, owners, strict=True) if op.phase is Phase.BACKWARD and t is not None]
    assert backward == sorted(backward, reverse=True)
    assert set(backward) == set(range(STEPS))
    known = lives(trace.ops)
    for op, t in zip(trace.ops, owners, strict=True):
        if op.phase is Phase.BACKWARD and t is not None:
            read = {owners[known[i].made] for i in op.reads if known[i].made >= 0} - {None}
            assert all(step in (t, t - 1) for step in read if trace.ops[0] and step <= t) or read <= {t + 1}


@pytest.mark.parametrize("cell", ["lstm", "tanh", "labels"])
def test_steps_are_blocks_then(cell):
    steps = as_steps(unrolled(cell))
    steps.check()
    assert [(blocks.root, blocks.count) for blocks in block_lists(steps)] == [(("<steps>",), STEPS)]
    again = remat.apply(steps, Plan(remat=Remat(policy="segments", segments="0-7(0-3),8-15")))
    again.check()
    assert again.peak_bytes() < steps.peak_bytes()


@pytest.mark.parametrize(("cell", "found"), [("lstm", "cell"), ("labels", "cell"), ("tanh", "")])
def test_calls_of_one_module_are_told_from_what_is_written_out(cell, found):
    assert cell_of(unrolled(cell)) == found


def test_calls_of_a_cell_are_its_time_steps():
    trace = unrolled("labels")
    owners = calls_of_cell(trace, "cell")
    # GIVEN a cell  THEN each call has as many ops, all of the cell, and the others have none
    mine = [
        (op.module[0], t) for op, t in zip(trace.ops, owners, strict=True) if op.phase is Phase.FORWARD and op.module
    ]
    assert all((name == "cell") == (t is not None) for name, t in mine)
    assert len({*Counter(t for _, t in mine if t is not None).values()}) == 1
    with pytest.raises(UnsupportedError, match="does not call head several times"):
        calls_of_cell(trace, "head")
