"""What was reproduced of xMem's published runs, held to its rows; no run is needed."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "xmem_rows.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("xmem_rows", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def results(benchmark):
    return [benchmark.Result(**line) for line in benchmark.load(benchmark.RESULTS)]


def test_every_row_has_a_result(benchmark, results):
    rows = [benchmark.Row(**line) for line in benchmark.load(benchmark.ROWS)]
    names = benchmark.Row.__dataclass_fields__
    found = [benchmark.Row(**{name: asdict(result)[name] for name in names}) for result in results]
    assert sorted(map(repr, found)) == sorted(map(repr, rows))
    assert sum(row.in_sample for row in rows) == 6


def test_all_runs_together_are_nearer_than_xmem_and_every_verdict_is_right(results):
    fitted = [result for result in results if not result.was_out_of_memory]
    ours = statistics.median(abs(result.error) for result in fitted)
    assert ours < statistics.median(abs(result.xmem_error) for result in fitted)
    assert all(result.is_out_of_memory == result.was_out_of_memory for result in results)


def test_the_tables_hold_every_run(benchmark, results):
    lines = benchmark.model_table(results).splitlines()[2:]
    assert sum(int(line.split("|")[3]) for line in lines) == len(results)
    assert len(benchmark.sample_table([result for result in results if result.in_sample]).splitlines()) == 2 + 6
