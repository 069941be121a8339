"""What `benchmarks/planner_budgets.py` found: how budgets were kept, and that exact planners are no slower."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise

import pytest


@pytest.fixture(scope="module")
def benchmark(root):
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("planner_budgets", root / "benchmarks" / "planner_budgets.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["planner_budgets"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(root / "benchmarks"))
    return module


@pytest.fixture(scope="module")
def rows(benchmark):
    return [row for row in benchmark.load_results() if row.outcome == "fits"]


def test_runs_kept_their_budgets(benchmark, rows):
    # GIVEN the runs of all plans  THEN none needed more than its budget
    ran = [row for row in rows if row.ran_bytes]
    assert {row.model for row in ran} == set(benchmark.MODELS)
    assert len(ran) > 250
    assert not [(row.model, row.planner, row.over) for row in ran if row.over > 0]


def test_less_memory_never_makes_a_step_faster(rows):
    # Checkmate ends at its time limit, with an answer of its own or with Rotor's
    for model, planner in {(row.model, row.planner) for row in rows if row.planner != "checkmate"}:
        mine = sorted(
            (row.budget_bytes, row.extra_seconds) for row in rows if (row.model, row.planner) == (model, planner)
        )
        times = [seconds for _, seconds in mine]
        assert all(more <= less + 1e-9 for less, more in pairwise(times)), (model, planner)


@pytest.mark.parametrize(
    ("better", "other"),
    [("rotor", "chen"), ("checkmate", "rotor"), ("pofo", "rotor"), ("pofo", "offload")],
)
def test_exact_planners_are_no_slower(rows, better, other):
    found = {(row.model, row.budget_bytes, row.planner): row for row in rows}
    others = [row for row in rows if row.planner == other]
    assert others
    for row in others:
        mine = found[row.model, row.budget_bytes, better]
        assert mine.extra_seconds <= row.extra_seconds + 1e-3 * row.plain_seconds


def test_the_table_stands_in_the_documentation(benchmark, root):
    assert benchmark.table(benchmark.load_results()) in (root / "docs" / "accuracy.md").read_text("utf-8")
