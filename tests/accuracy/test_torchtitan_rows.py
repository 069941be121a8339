"""What was reproduced of torchtitan's published runs, held to its rows; parts of the benchmark that need no run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "torchtitan_rows.py"
GIB = 2**30


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("torchtitan_rows", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def last_readings(benchmark):
    """For each row its last published reading, which is the one that counts."""
    return {result.row: result for result in benchmark.load_results()}


def test_every_row_has_a_result_for_every_published_reading(benchmark):
    expected = [(row.name, name) for row in benchmark.load_rows() for name in row.published or ["out of memory"]]
    assert [(result.row, result.reading) for result in benchmark.load_results()] == expected


def test_saved_errors_are_those_of_the_saved_numbers(benchmark):
    rows = {row.name: row for row in benchmark.load_rows()}
    for result in benchmark.load_results():
        if not result.published_gib:
            continue
        error = float(result.reproduced_gib) / rows[result.row].published[result.reading] - 1
        assert float(result.relative_error) == pytest.approx(error, abs=2e-4)
        assert result.kept == (abs(float(result.relative_error)) <= 0.002)


def test_runs_of_early_2025_are_reproduced_to_a_thousandth(benchmark):
    readings = [result for result in benchmark.load_results() if result.row.rsplit("-", 1)[0] == "llama3-8b"]
    three = [result for result in readings if result.row.endswith(("-default", "-always", "-never"))]
    assert len(three) == 9
    assert max(abs(float(result.relative_error)) for result in three) <= 0.001


def test_four_of_five_rows_are_kept_and_all_that_ran_out_of_memory(benchmark):
    last = last_readings(benchmark).values()
    assert sum(result.kept for result in last) >= 0.8 * len(last)
    assert all(result.kept for result in last if result.reading == "out of memory")


def test_a_changed_configuration_keeps_what_is_not_changed(benchmark):
    # GIVEN a configuration WHEN one value changes and another is added THEN the rest stays, and so does the original
    config = {"training": {"steps": 1000, "seq_len": 8192}}
    changed = benchmark.changed(config, {"training": {"steps": 10}}, {"metrics": {"log_freq": 10}})
    assert changed == {"training": {"steps": 10, "seq_len": 8192}, "metrics": {"log_freq": 10}}
    assert config["training"]["steps"] == 1000


names = st.text("abcxyz_", min_size=1, max_size=8)
values = st.one_of(
    st.booleans(), st.integers(-(2**31), 2**31), st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]))
)


@given(st.dictionaries(names, st.dictionaries(names, st.one_of(values, st.lists(st.integers())))))
def test_a_configuration_reads_back_as_it_was_written(benchmark, config):
    assert benchmark.tomllib.loads(benchmark.toml_text(config)) == config


@pytest.fixture
def row(benchmark):
    return benchmark.load_rows()[0]


def test_a_reading_counts_within_two_thousandths(benchmark, row):
    # GIVEN readings of which the last is 1 % too much WHEN they are judged THEN only that one is not kept
    readings = [{"reserved_bytes": gib * GIB} for gib in row.published.values()]
    readings[-1]["reserved_bytes"] *= 1.01
    assert [result.kept for result in benchmark.judge(row, readings, "", "2.7.1")] == [True, True, False]


def test_a_run_that_ends_early_keeps_nothing_and_says_why(benchmark, row):
    results = list(benchmark.judge(row, [], "ImportError: no", "2.7.1"))
    assert not any(result.kept for result in results)
    assert {result.said for result in results} == {"ImportError: no"}


def test_running_out_of_memory_is_right_only_where_it_is_published(benchmark, row):
    readings = [{"reserved_bytes": 3 * GIB}, {"reserved_bytes": 90 * GIB, "out_of_memory": "tried to allocate 8 GiB"}]
    short = next(row for row in benchmark.load_rows() if row.out_of_memory)
    assert [result.kept for result in benchmark.judge(short, readings, "", "2.9.1")] == [True]
    assert not list(benchmark.judge(row, readings, "", "2.7.1"))[-1].kept
