"""REVOLVE's closed form and schedules are those of brute force."""

from __future__ import annotations

from functools import cache

import pytest

from dnnmem.estimator.planners.revolve import advances, schedule


@cache
def least(n, c):
    """t(n, c) by trying every place of the second checkpoint."""
    if n == 1:
        return 0
    if c == 1:
        return n * (n - 1) // 2
    return min(k + least(n - k, c - 1) + least(k, c) for k in range(1, n))


def test_the_closed_form_is_brute_force():
    assert all(advances(n, c) == least(n, c) for n in range(1, 40) for c in range(1, 8))


def run_forward(runs, first, last):
    """Steps that run forward before each one's backward pass, and most inputs that are kept meanwhile."""
    steps, held, most, k = 0, 1, 1, first  # the first input is kept
    tape = []
    inside = {run.first: run for run in runs}
    while k <= last:
        run = inside.get(k)
        end = run.last if run else k
        steps += end - k + 1 if run else 0
        tape.append((run, held))
        held += run is not None
        most = max(most, held if run and end < last else most)
        k = end + 1
    for run, before in reversed(tape):
        if run:
            again, inner = run_forward(run.inner, run.first, run.last)
            steps, most = steps + again, max(most, before - 1 + inner)
    return steps, most


@pytest.mark.parametrize("c", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 2, 7, 16, 33])
def test_schedules_run_as_few_steps_with_as_few_checkpoints(n, c):
    steps, held = run_forward(schedule(n, c), 0, n - 1)
    assert steps == advances(n, c)
    assert held <= c + 1  # and the state that runs forward
