"""`dnnmem run` from end to end, but for the child processes, which made-up results stand in for."""

import json
import os
from dataclasses import replace

import jsonschema
import pytest

from dnnmem.cli.app import run
from dnnmem.cli.commands.run_job import prepare_run
from dnnmem.cli.export.run_json import json_schema
from dnnmem.profilers import ranks
from dnnmem.profilers.script_result import DeviceMemory, OutOfMemory, RankResult, StepPeak

GIB = 2**30
GPU = DeviceMemory(
    device=0, name="NVIDIA A10G", allocated_bytes=9 * GIB, requested_bytes=9 * GIB, reserved_bytes=10 * GIB,
    segments=40, outside_bytes=GIB, total_bytes=22 * GIB,
    steps=(
        StepPeak(allocated_bytes=8 * GIB, reserved_bytes=9 * GIB),
        StepPeak(allocated_bytes=9 * GIB, reserved_bytes=10 * GIB),
    ),
)  # fmt: skip
RAN = RankResult(
    outcome="ran", steps=2, stopped=True, optimizers={"AdamW": 2}, memory=(GPU,), versions={"torch": "2.14.1"}
)
OOM = replace(
    RAN, outcome="out_of_memory", steps=1, stopped=False,
    message="train.py:9 in <module>\n    model(x)\nOutOfMemoryError: no",
    oom=OutOfMemory(
        message="CUDA out of memory. Tried to allocate 2.00 GiB.", asked_bytes=2 * GIB, free_bytes=GIB, step=2,
        phase="backward", module="h.3", source="train.py:9",
    ),
)  # fmt: skip


@pytest.fixture(name="child")
def _child(monkeypatch, tmp_path):
    """Stands in for the child processes; keeps the runs that it is asked for, and answers with `child.results`."""
    (tmp_path / "train.py").write_text("")

    class Child:
        results = (RAN,)

    def answer(job, _base, *, on_output=print, on_progress=print, cache=None, save=None):
        del cache, save
        Child.runs.append(job)
        on_output("loss 2.3")
        on_progress(1)
        return Child.results

    Child.runs = []
    monkeypatch.setattr(ranks, "run_script", answer)
    return Child


def test_a_script_that_fits_says_so_and_what_each_step_needed(child, capsys):
    assert run(["run", "--no-layers", "--gpu", "a10g", "--", "train.py", "--lr", "1"]) == 0

    out, err = capsys.readouterr()
    assert "FITS: 11.00 GiB of the" in out
    assert "2 training steps ended by dnnmem (2 of AdamW)" in out
    assert [line.split() for line in out.splitlines() if line.lstrip().startswith("2  ")] == [
        ["2", "9.00", "GiB", "10.00", "GiB"]
    ]
    assert "loss 2.3" in err
    assert child.runs[0].request.arguments == ("--lr", "1")


def test_options_after_the_script_are_its_own(child):
    assert run(["run", "--no-layers", "train.py", "--gpu", "mine", "--json", "-"]) == 0

    assert child.runs[0].request.arguments == ("--gpu", "mine", "--json", "-")


def test_out_of_memory_is_told_with_its_place_and_exits_with_1(child, capsys):
    child.results = (OOM,)

    assert run(["run", "--no-layers", "train.py"]) == 1

    out = capsys.readouterr().out
    assert "DOES NOT FIT: runs out of the 79.10 GiB of h100-sxm-80gb in step 2, backward" in out
    assert "in step 2, backward, in h.3\ntrain.py:9\n" in out
    assert "2.00 GiB asked for, 1.00 GiB free on the GPU\nCUDA out of memory. Tried to allocate 2.00 GiB." in out


def test_out_of_memory_by_shapes_that_nobody_knows_is_said_to_be_a_bound(child, capsys):
    child.results = (replace(OOM, facts={"shapes_bounded": 3}),)

    assert run(["run", "--no-layers", "train.py"]) == 1

    out = capsys.readouterr().out
    assert "DOES NOT FIT, by an upper bound: runs out of the 79.10 GiB of h100-sxm-80gb in step 2, backward" in out


@pytest.mark.parametrize(
    ("outcome", "words"),
    [("failed", "NOT KNOWN: the script failed"), ("timed_out", "NOT KNOWN: the script took too long")],
)
def test_a_failure_exits_with_3_and_is_told_in_the_scripts_words(child, capsys, outcome, words):
    child.results = (replace(RAN, outcome=outcome, message="train.py:3 in go\nValueError: no"),)

    assert run(["run", "train.py"]) == 3

    out, err = capsys.readouterr()
    assert words in out
    assert err.endswith("error: the script failed:\ntrain.py:3 in go\nValueError: no\n") or "--timeout" in err


@pytest.mark.parametrize("results", [(RAN,), (OOM,), (replace(RAN, memory=(), outcome="failed"),), (RAN, OOM)])
def test_json_validates_against_the_published_schema(child, capsys, root, results):
    child.results = results

    run(["run", "--no-layers", "--json", "-", "train.py"])

    value = json.loads(capsys.readouterr().out)
    jsonschema.validate(value, json.loads((root / "src/dnnmem/schemas/run-1.schema.json").read_text()))
    assert value["schema"] == "dnnmem.run/1"
    outcomes = {result.outcome for result in results}
    assert value["fits"] is (False if "out_of_memory" in outcomes else True if outcomes == {"ran"} else None)
    assert len(value["ranks"]) == len(results)


def test_the_published_schema_is_the_one_of_the_models(root):
    path = root / "src/dnnmem/schemas/run-1.schema.json"
    if os.environ.get("DNNMEM_REWRITE_GOLDEN") == "1":
        path.write_text(json_schema(), encoding="utf-8")

    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json_schema())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("9.24", "workspaces of 5 cuDNN operations: the largest 1.00 GiB, exact"),
        (
            "9.8",
            "workspaces of 5 cuDNN operations: the largest 1.00 GiB, by cuDNN 9.8 in place of 9.24: 1.00 GiB to 3.00",
        ),
    ],
)
def test_what_lies_outside_tensors_has_lines_of_its_own(child, capsys, asked, expected):
    # GIVEN a run with workspaces of cuDNN, a CUDA context of 600 MiB and NCCL's buffers of 424
    facts = {"cudnn": "9.24", "cudnn_asked": asked, "cudnn_operations": 5, "cudnn_operations_unknown": 0}
    facts |= {"cudnn_largest_bytes": GIB, "cudnn_largest_high_bytes": 3 * GIB}
    child.results = (replace(RAN, memory=(replace(GPU, nccl_bytes=424 * 2**20),), facts=facts),)
    # WHEN it is reported
    run(["run", "--no-layers", "train.py"])
    # THEN each stands for itself
    lines = capsys.readouterr().out.splitlines()
    assert expected in " ".join(lines)
    assert any("600.0 MiB  424.0 MiB" in line for line in lines)
    run(["run", "--no-layers", "--json", "-", "train.py"])
    rank = json.loads(capsys.readouterr().out)["ranks"][0]
    assert (rank["facts"], rank["memory"][0]["nccl_bytes"]) == (facts, 424 * 2**20)


def test_what_is_not_known_is_said_not_left_out(child, capsys):
    child.results = (replace(RAN, memory=(replace(GPU, outside_bytes=None),), notes=("a stated assumption",)),)

    run(["run", "--no-layers", "train.py"])

    out = capsys.readouterr().out
    assert "without the CUDA context" in out
    assert "not known" in out
    assert "- a stated assumption" in out


@pytest.mark.parametrize(
    ("options", "ranks_", "world", "per_node"),
    [
        ([], None, 1, 8),
        (["--gpus", "8"], (0,), 8, 8),
        (["--gpus", "64", "--rank", "first,last"], (0, 63), 64, 8),
        (["--rank", "all", "torchrun", "--nproc-per-node", "2"], (0, 1), 2, 2),
    ],
)
def test_gpus_and_launchers_say_how_many_ranks_there_are(tmp_path, options, ranks_, world, per_node):
    (tmp_path / "train.py").write_text("")
    flags = dict(
        zip(*[iter([o for o in options if o.startswith("--") or not o.startswith("torchrun")])] * 2, strict=False)
    )
    words = [*options[options.index("torchrun") :], "train.py"] if "torchrun" in options else ["train.py"]

    job = prepare_run(
        words,
        {},
        {},
        folder=tmp_path,
        gpus=int(flags["--gpus"]) if "--gpus" in flags else None,
        rank=flags.get("--rank"),
    )

    assert (job.run.ranks, job.run.world_size, job.run.ranks_per_node) == (ranks_, world, per_node)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no script is named"),
        (["missing.py"], "there is no script missing.py"),
        (["--steps", "0", "train.py"], "--steps is 0"),
        (["--gpus", "0", "train.py"], "--gpus is 0"),
        (["--rank", "9", "train.py"], "--rank 9"),
        (["--gpus", "2", "torchrun", "--nproc-per-node", "4", "train.py"], "--gpus is 2, but the launcher starts 4"),
        (["--gpu", "mi300x", "train.py"], "virtual GPUs are NVIDIA's"),
        (["--memory", "95", "train.py"], "--memory is 95"),
        (["--timeout", "0", "train.py"], "--timeout is 0"),
        (["--save", "x.json", "train.py"], "--save x.json"),
        (["--json", "no/folder.json", "train.py"], "no/folder.json"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_runs(child, capsys, arguments, words):
    assert run(["run", *arguments]) == 2

    assert words in capsys.readouterr().err
    assert not child.runs


def test_a_rank_that_fails_without_the_others_is_told_to_be_run_with_them(child, capsys):
    failed = replace(RAN, outcome="failed", message="ValueError: no shard", rank=0, world_size=2)
    child.results = (failed,)

    assert run(["run", "--no-layers", "--gpus", "2", "train.py"]) == 3
    assert "--rank all" in capsys.readouterr().err

    child.results = (failed, replace(failed, rank=1))
    assert run(["run", "--no-layers", "--gpus", "2", "--rank", "all", "train.py"]) == 3
    assert "--rank all" not in capsys.readouterr().err


def test_ranks_that_need_the_same_share_a_table_of_steps(child, capsys):
    # GIVEN three ranks, the last of which needs less
    less = replace(GPU, steps=tuple(replace(step, allocated_bytes=GIB) for step in GPU.steps))
    child.results = tuple(
        replace(RAN, rank=rank, world_size=3, memory=(less if rank == 2 else GPU,)) for rank in range(3)
    )

    assert run(["run", "--no-layers", "--gpus", "3", "--rank", "all", "train.py"]) == 0

    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("Steps")] == ["Steps, ranks 0, 1", "Steps, rank 2"]


def test_a_rank_that_was_ended_is_not_the_one_that_failed(child, capsys):
    ended = replace(RAN, outcome="ended", rank=0, world_size=2, message="it was ended, for rank 1 had failed")
    child.results = (ended, replace(RAN, outcome="failed", rank=1, world_size=2, message="ValueError: it is I"))

    assert run(["run", "--gpus", "2", "--rank", "all", "train.py"]) == 3

    assert "error: the script failed (rank 1):\nValueError: it is I" in capsys.readouterr().err
