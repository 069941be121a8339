"""What was reproduced of modded-nanogpt's public logs, held to its rows; parts of the benchmark that need no run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "modded_nanogpt_rows.py"


@pytest.fixture(scope="module")
def benchmark():
    pytest.importorskip("numpy")
    spec = importlib.util.spec_from_file_location("modded_nanogpt_rows", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def row(benchmark):
    return next(row for row in benchmark.load_rows() if row.reserved is not None)


def test_a_row_that_ran_has_a_result_for_every_logged_reading(benchmark):
    rows = {row.name: row for row in benchmark.load_rows()}
    read = {}
    for result in benchmark.load_results():
        read.setdefault(result.row, []).append((result.reading, result.logged_mib))
    for name, readings in read.items():
        logged = [("allocated", rows[name].allocated), ("reserved", rows[name].reserved)]
        assert readings == [reading for reading in logged if reading[1] is not None]


def test_saved_errors_are_those_of_the_saved_numbers(benchmark):
    for result in benchmark.load_results():
        if not result.reproduced_mib:
            assert result.said
            assert not result.kept
            continue
        error = int(result.reproduced_mib) / result.logged_mib - 1
        assert float(result.relative_error) == pytest.approx(error, abs=1e-5)
        assert result.kept == (abs(error) <= benchmark.KEPT[result.reading])


def test_a_reading_counts_within_its_own_limit(benchmark, row):
    # GIVEN a run that needs 0.5 % more than the log says  WHEN it is judged  THEN allocated is too much
    found = {name: int(getattr(row, name) * 1.005) * benchmark.MIB for name in benchmark.KEPT}
    assert [result.kept for result in benchmark.judge(row, found, "", "2.8.0")] == [False, True]


def test_a_run_that_ends_early_keeps_nothing_and_says_why(benchmark, row):
    results = list(benchmark.judge(row, {}, "ImportError: no", "2.8.0"))
    assert not any(result.kept for result in results)
    assert {result.said for result in results} == {"ImportError: no"}


def test_peaks_are_those_of_the_one_rank(benchmark):
    ran = {"outcome": "ran", "message": "", "memory": [{"allocated_bytes": 7, "reserved_bytes": 9, "segments": 1}]}
    failed = {"outcome": "failed", "message": "train_gpt.py:3 in <module>\nValueError: no\n", "memory": []}
    assert benchmark.peaks({"ranks": [ran]}) == ({"allocated": 7, "reserved": 9}, "")
    assert benchmark.peaks({"ranks": [failed]}) == ({}, "ValueError: no")


def test_the_data_are_shards_that_the_programs_read(benchmark, tmp_path, monkeypatch):
    # GIVEN one short shard  WHEN it is written  THEN header and texts are right
    monkeypatch.setattr(benchmark, "_SHARDS", {"fineweb_val_000000": 3000})
    benchmark.write_data(tmp_path / "data")

    content = (tmp_path / "data" / "fineweb_val_000000.bin").read_bytes()
    header = benchmark.np.frombuffer(content[:1024], dtype="int32")
    words = benchmark.np.frombuffer(content[1024:], dtype="uint16")
    assert list(header[:3]) == [20240520, 1, 3000]
    assert len(words) == 3000
    assert list(benchmark.np.flatnonzero(words == 50256)) == [0, 1200, 2400]
