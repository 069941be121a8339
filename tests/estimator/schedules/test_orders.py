"""The schedules as drawings: a line a rank, a column a tick, `'` for the second chunk."""

from __future__ import annotations

from textwrap import dedent

import pytest

from dnnmem.estimator.errors import InternalError
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.schedules.grid import Grid, Step, draw, looped, starts, ticks


def _drawing(text: str) -> str:
    return dedent(text).strip("\n")


def test_gpipe():
    assert draw(SCHEDULES["gpipe"](4, 4, 1)) == _drawing("""
        0  F0 F1 F2 F3 .  .  .  .  .  .  B0 B1 B2 B3
        1  .  F0 F1 F2 F3 .  .  .  .  B0 B1 B2 B3 .
        2  .  .  F0 F1 F2 F3 .  .  B0 B1 B2 B3 .  .
        3  .  .  .  F0 F1 F2 F3 B0 B1 B2 B3 .  .  .
    """)


def test_one_f_one_b():
    assert draw(SCHEDULES["1f1b"](4, 6, 1)) == _drawing("""
        0  F0 F1 F2 F3 .  .  .  B0 F4 B1 F5 B2 .  B3 .  B4 .  B5
        1  .  F0 F1 F2 .  .  B0 F3 B1 F4 B2 F5 B3 .  B4 .  B5 .
        2  .  .  F0 F1 .  B0 F2 B1 F3 B2 F4 B3 F5 B4 .  B5 .  .
        3  .  .  .  F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 .  .  .
    """)


def test_one_f_one_b_with_fewer_microbatches_than_stages():
    assert draw(SCHEDULES["1f1b"](4, 2, 1)) == _drawing("""
        0  F0 F1 .  .  .  .  .  B0 .  B1
        1  .  F0 F1 .  .  .  B0 .  B1 .
        2  .  .  F0 F1 .  B0 .  B1 .  .
        3  .  .  .  F0 B0 F1 B1 .  .  .
    """)


def test_interleaved():
    assert draw(SCHEDULES["interleaved"](2, 4, 2)) == _drawing("""
        0  F0  F1  F0' F1' F2  B0' F3  B1' F2' B0  F3' B1  .   B2' .   B3' B2  B3
        1  .   F0  F1  F0' B0' F1' B1' F2  B0  F3  B1  F2' B2' F3' B3' B2  B3  .
    """)


def test_interleaved_with_a_microbatch_a_stage_runs_all_forwards_first():
    assert draw(SCHEDULES["interleaved"](2, 2, 2)) == _drawing("""
        0  F0  F1  F0' F1' .   .   B0' B1' B0  B1
        1  .   F0  F1  F0' F1' B0' B1' B0  B1  .
    """)


def test_orders_that_wait_for_each_other_are_found():
    # GIVEN a rank that wants its backward before it has given its forward to the next
    ranks = ((Step("B", 0, 0), Step("F", 0, 0)), (Step("F", 0, 0), Step("B", 0, 0)))
    grid = Grid(ranks=ranks, stages=looped(2))
    with pytest.raises(InternalError, match=r"2 ranks stop after \[0, 0\] steps"):
        starts(grid, ticks(grid))
