"""What came of programs that were run as they are, held to their catalogue; parts of the benchmark that need no run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dnnmem.estimator.devices import find_device

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "programs.py"
SCRIPTS = SCRIPT.parent / "programs" / "scripts"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("programs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_result_is_of_a_program_in_the_catalogue(benchmark):
    programs = {program.name: program for program in benchmark.load_programs()}
    for result in benchmark.load_results():
        assert (result.gpu, result.gpus) == (programs[result.program].gpu, programs[result.program].gpus)


def test_what_ran_has_peaks_and_made_its_steps(benchmark):
    programs = {program.name: program for program in benchmark.load_programs()}
    for result in benchmark.load_results():
        if result.outcome == "ran":
            assert 0 < result.allocated_bytes <= result.reserved_bytes
            without_optimizer = result.program.startswith("examples-words")  # it updates its weights by hand
            asked = programs[result.program].steps
            if asked == benchmark.TO_ITS_END:
                assert 1 < result.steps < asked
            else:
                assert result.steps == (0 if without_optimizer else asked)


def test_what_did_not_run_says_why(benchmark):
    assert all(result.notes for result in benchmark.load_results() if result.outcome != "ran")


def test_24_programs_ran(benchmark):
    assert sum(result.outcome == "ran" for result in benchmark.load_results()) >= 24


def test_programs_on_several_gpus_ran_all_their_ranks_or_the_one_that_was_asked_for(benchmark):
    programs = {program.name: program for program in benchmark.load_programs()}
    for result in benchmark.load_results():
        if result.outcome == "ran" and result.gpus > 1:
            assert result.ranks == (result.gpus if programs[result.program].ranks == "all" else 1)


def test_every_program_of_the_catalogue_has_a_result(benchmark):
    names = [program.name for program in benchmark.load_programs()]
    assert [result.program for result in benchmark.load_results()] == names


def test_programs_know_nothing_of_dnnmem(benchmark):
    own = [program for program in benchmark.load_programs() if not program.repository]
    assert all("dnnmem" not in (SCRIPTS / program.script).read_text(encoding="utf-8") for program in own)


def test_programs_of_others_name_a_commit_and_known_gpus(benchmark):
    for program in benchmark.load_programs():
        assert not program.repository or len(program.commit) == 40
        assert find_device(program.gpu).name == program.gpu


def test_a_program_is_left_out_where_its_library_or_its_clone_is_missing(benchmark, tmp_path):
    program = next(program for program in benchmark.load_programs() if program.repository and not program.needs)
    assert benchmark.missing(program, tmp_path) == f"no clone of {program.repository} under --sources"
    assert benchmark.missing(replace(program, needs=("no-such-thing",)), tmp_path) == "no-such-thing is not installed"


def test_results_are_saved_in_the_order_of_the_catalogue_and_replace_older_ones(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "programs.csv")
    first, second = benchmark.load_programs()[:2]
    known = {"gpu": "t4", "gpus": 1, "ranks": 1, "steps": 3, "reserved_bytes": 2, "again_bytes": "", "layers": 0}
    known |= {"seconds": 1.5, "versions": "torch 2", "notes": ""}
    made = [benchmark.Result(program=p.name, outcome="ran", allocated_bytes=1, **known) for p in (second, first)]
    for result in [*made, replace(made[0], allocated_bytes=2)]:
        benchmark.save([result])
    assert benchmark.load_results() == [made[1], replace(made[0], allocated_bytes=2)]


def test_peaks_are_those_of_the_rank_that_reserved_most_and_notes_come_once(benchmark, tmp_path):
    gpus = [{"allocated_bytes": 5, "reserved_bytes": 6}, {"allocated_bytes": 3, "reserved_bytes": 8}]
    found = {"ranks": [{"memory": [gpu], "message": "", "notes": ["balanced"]} for gpu in gpus]}
    assert benchmark.peaks(json.loads(json.dumps(found))) == (3, 8)
    assert benchmark.notes(found, tmp_path / "none.log") == ["balanced"]


def test_what_stopped_a_run_is_the_line_of_its_error(benchmark, tmp_path):
    log = tmp_path / "run.log"
    log.write_text("step 0\nerror: cufftExec is not reviewed\nhint: report it\n")
    assert benchmark.notes({}, log) == ["cufftExec is not reviewed"]


@pytest.mark.parametrize("kind", ["words", "texts", "images"])
def test_data_can_be_made(kind, tmp_path):
    subprocess.run([sys.executable, SCRIPT.parent / "programs" / "data.py", kind, tmp_path], check=True)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.*") if path.is_file()) > 100_000


def test_the_table_says_once_what_was_assumed_and_in_full_what_stopped_a_program(benchmark):
    first, second, third = benchmark.load_programs()[:3]
    known = {"gpu": "t4", "gpus": 1, "ranks": 1, "steps": 3, "allocated_bytes": 2**30, "reserved_bytes": 2**31}
    known |= {"again_bytes": "", "layers": 0, "seconds": 1.5, "versions": "torch 2"}
    told = [
        "none is infinite (3 times)\nit is balanced",
        "none is infinite (1 time)\nnone is infinite (9 times)",
        "no memory",
    ]
    results = [
        benchmark.Result(program=program.name, outcome="failed" if program is third else "ran", notes=said, **known)
        for program, said in zip((first, second, third), told, strict=True)
    ]
    head, _, *lines = benchmark.table(results).splitlines()
    assert head == "2 of 3 programs ran, 0 of them on several GPUs."
    lines = lines[2:]
    assert [line.rpartition("| t4 ")[2] for line in lines] == [
        "| ran | 1.000 | 2.000 | 1, 2 |",
        "| ran | 1.000 | 2.000 | 1 |",
        "| failed: no memory | 1.000 | 2.000 | - |",
        "",
        "1. none is infinite",
        "2. it is balanced",
    ]
