"""`dnnmem check` from end to end, but for the child processes, which recorded steps stand in for."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from dnnmem.cli import check_run
from dnnmem.cli.app import run
from dnnmem.estimator.errors import ModelError, UnsupportedError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Event
from dnnmem.estimator.trace_file import save_trace
from tests.cli.commands.test_profile import small_step

BASELINE = Path(".dnnmem/baseline.json")


def grown_step(gpu=None):
    """The step with an activation of twice the size."""
    trace = small_step(gpu)
    storages = {**trace.storages, 1: replace(trace.storages[1], nbytes=16384)}
    ops = tuple(
        replace(op, events=tuple(Event(2 * n if i == 1 else n, s, i) for n, s, i in op.events)) for op in trace.ops
    )
    return replace(trace, storages=storages, ops=ops)


@pytest.fixture(name="child")
def _child(monkeypatch):
    """Stands in for the child process: `child.steps` holds what becomes of a target."""

    class Child:
        seconds = None

    def run_many(requests, folder, *, on_output=print, **_):
        on_output("loss 2.3")
        for i, request in enumerate(requests):
            answer = Child.steps.get(request.target, small_step(request.gpu))
            if not isinstance(answer, Exception):
                trace, answer = answer, folder / f"{i}.trace.json.gz"
                save_trace(trace, Measurement(step_seconds=Child.seconds), answer)
            yield i, answer

    Child.steps = {}
    monkeypatch.setattr(check_run, "run_many", run_many)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    return Child


def _check(*arguments):
    text = io.StringIO()
    return run(["check", *arguments], stderr=text), text.getvalue()


def _json(capsys, *arguments):
    capsys.readouterr()
    code, told = _check(*arguments, "--json", "-")
    return code, json.loads(capsys.readouterr().out), told


@pytest.mark.usefixtures("child")
def test_the_first_run_passes_with_a_notice_and_writes_nothing(capsys):
    # WHEN
    code, _ = _check("model.py")
    # THEN
    told = capsys.readouterr().out
    assert code == 0
    assert "model.py was not compared: the baseline has nothing for model.py | batch_size 64" in told
    assert not BASELINE.exists()


@pytest.mark.usefixtures("child")
def test_a_required_baseline_that_lacks_is_a_usage_error(capsys):
    # WHEN
    code, told = _check("model.py", "--require-baseline")
    # THEN
    assert code == 2
    assert told.startswith("error: .dnnmem/baseline.json accepts nothing for model.py")
    assert "model.py" in capsys.readouterr().out


@pytest.mark.usefixtures("child")
def test_what_was_accepted_passes_and_an_update_says_so(capsys):
    # WHEN
    code, _ = _check("model.py", "--update-baseline")
    # THEN
    told = capsys.readouterr()
    assert code == 0
    assert "was not compared" not in told.out
    assert told.err.endswith("wrote .dnnmem/baseline.json; steps accepted: 1\n")
    assert _check("model.py", "--require-baseline")[0] == 0


def test_a_step_that_grew_fails_and_names_the_layer_and_its_line(child, capsys, request):
    # GIVEN
    _check("model.py", "--update-baseline")
    child.steps["model.py"] = grown_step()
    # WHEN
    code, data, told = _json(capsys, "model.py")
    # THEN
    assert code == 1
    assert "1 of 1 steps need more than is allowed: model.py" in told
    path = request.config.rootpath / "src/dnnmem/schemas/check-1.schema.json"
    jsonschema.validate(data, json.loads(path.read_text()))
    (step,) = data["steps"]
    assert (step["outcome"], step["increase"], step["blame"][0]["module"]) == ("regressed", 0.5, "fc")
    assert step["blame"][0]["kinds"] == {"activation": 8192}
    assert step["blame"][0]["since"] == "forward, aten.mm.default, in model.py:3"


def test_a_step_that_grew_is_accepted_by_an_update(child, capsys):
    # GIVEN
    _check("model.py", "--update-baseline")
    child.steps["model.py"] = grown_step()
    # THEN
    assert _check("model.py", "--update-baseline")[0] == 0
    assert "model.py is accepted, though its peak grew by 50.0%" in capsys.readouterr().out
    assert _check("model.py")[0] == 0


@pytest.mark.usefixtures("child")
def test_a_budget_stands_whatever_is_accepted(capsys):
    # WHEN
    code, data, told = _json(capsys, "model.py", "--budget", "1KiB", "--update-baseline")
    # THEN
    assert (code, data["passed"], data["steps"][0]["over_budget"]) == (1, False, True)
    assert data["steps"][0]["reasons"] == ["it needs 16.0 KiB in all, and the budget is 1.0 KiB"]
    assert "larger --budget" in told
    assert BASELINE.exists()


def test_other_conditions_are_never_compared_in_silence(child, capsys, monkeypatch):
    # GIVEN
    _check("model.py", "--update-baseline")
    child.steps["model.py"] = replace(grown_step(), origin=replace(grown_step().origin, versions={"torch": "2.10.1"}))
    # WHEN
    code, data, _ = _json(capsys, "model.py")
    # THEN
    assert (code, data["steps"][0]["outcome"]) == (0, "new")
    assert data["steps"][0]["not_compared"] == ["model.py | batch_size 64 | fake | no gpu | torch 2.9"]
    # AND so for the allocator's settings, the optimizer and the inputs
    child.steps.clear()
    for options in (["--optimizer", "sgd"], ["--input", "8,3:float32"], ["--gpu", "a10g"]):
        assert _json(capsys, "model.py", *options)[1]["steps"][0]["outcome"] == "new"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert _json(capsys, "model.py")[1]["steps"][0]["key"].endswith("| expandable_segments:True")


def test_a_target_that_fails_leaves_the_others_and_its_own_baseline_alone(child, capsys):
    # GIVEN
    child.steps["bad.py"] = ModelError("make_model fails\nbad.py:3", hint="mend it")
    _check("bad.py", "good.py", "--update-baseline")
    # WHEN
    code, data, told = _json(capsys, "bad.py", "good.py")
    # THEN
    assert code == 3
    assert told == "error: bad.py: make_model fails\nbad.py:3\nhint: mend it\n"
    assert [step["outcome"] for step in data["steps"]] == ["failed", "ok"]
    assert list(json.loads(BASELINE.read_text())["steps"]) == ["good.py | batch_size 64 | fake | no gpu | torch 2.9"]


def test_what_no_device_can_do_is_exit_code_4(child):
    # GIVEN
    child.steps["model.py"] = UnsupportedError("aten.nonzero has no shape")
    # THEN
    assert _check("model.py")[0] == 4


def test_time_is_looked_at_on_request_only(child, capsys):
    # GIVEN a step that was accepted without its time
    child.seconds = 1.0
    _check("model.py", "--device", "cpu", "--update-baseline")
    assert '"step_seconds": null' in BASELINE.read_text()
    # THEN a limit on time says that there is nothing to compare with
    assert _check("model.py", "--device", "cpu", "--max-slowdown", "10%")[0] == 0
    assert "time was not compared" in capsys.readouterr().out
    # AND with one it fails
    _check("model.py", "--device", "cpu", "--max-slowdown", "10%", "--update-baseline")
    child.seconds = 2.0
    assert _check("model.py", "--device", "cpu")[0] == 0
    code, _ = _check("model.py", "--device", "cpu", "--max-slowdown", "10%")
    assert code == 1
    assert "its step takes 100.0% longer, and 10.0% is allowed" in capsys.readouterr().out


def test_every_report_is_written_where_it_was_asked_for(child, tmp_path, monkeypatch, capsys):
    # GIVEN
    _check("model.py", "--update-baseline")
    child.steps["model.py"] = grown_step()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    capsys.readouterr()
    names = {"json": "{", "md": "<!-- dnnmem check -->", "junit": "<?xml", "sarif": "{", "bencher": "{"}
    # WHEN
    code, _ = _check("model.py", *(word for name in names for word in (f"--{name}", f"out.{name}")))
    # THEN
    assert code == 1
    for name, start in names.items():
        assert Path(f"out.{name}").read_text().startswith(start)
    assert (tmp_path / "summary").read_text() == Path("out.md").read_text()
    assert "\n::error file=model.py,line=3,title=dnnmem check::" in capsys.readouterr().out


def test_lines_of_the_table_keep_to_the_width(child, capsys, monkeypatch):
    # GIVEN
    monkeypatch.setenv("COLUMNS", "80")
    _check("model.py", "--gpu", "a10g", "--update-baseline")
    child.steps["model.py"] = grown_step("a10g-24gb")
    capsys.readouterr()
    # WHEN
    _check("model.py", "--gpu", "a10g")
    # THEN
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[:4] == ["regressed", "model.py", "|", "batch_size"]
    assert lines[2].startswith("on fake | a10g")
    assert lines[5] == "activation +8.0 KiB; fragmentation -8.0 KiB; reserved 2.0 MiB, was 2.0 MiB"


@pytest.mark.usefixtures("child")
def test_the_users_own_gpu_is_the_one_that_is_meant(root, capsys):
    # GIVEN
    text = (root / "estimator/specs/nvidia.toml").read_text()
    begin = text.index("[a10g")
    table = text[begin : text.index("\n[", begin + 1)]
    Path("my.toml").write_text(table.replace("[a10g", "[mine", 1))
    # WHEN
    code, data, told = _json(capsys, "model.py", "--gpu", "my.toml")
    # THEN
    assert (code, told) == (0, "")
    assert "| mine" in data["steps"][0]["key"]


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no TARGET is given"),
        (["step.trace.json.gz"], "is a recorded step"),
        (["model.py", "model.py"], "stands there twice"),
        (["model.py", "--batch", "0"], "--batch is 0"),
        (["model.py", "--batch", "many"], "Invalid value for '--batch'"),
        (["model.py", "--gpu", "b400"], "b400"),
        (["model.py", "--gpu", "none.toml"], "none.toml"),
        (["model.py", "--device", "tpu"], "--device is 'tpu'"),
        (["model.py", "--max-increase", "2"], "which is 200%"),
        (["model.py", "--max-increase", "-2%"], "--max-increase is '-2%'"),
        (["model.py", "--budget", "22 apples"], "22 apples"),
        (["model.py", "--max-slowdown", "10%"], "needs a clock"),
        (["model.py", "--format", "yaml"], "--format is 'yaml'"),
        (["model.py", "--format", "md", "--json", "-"], "both want stdout"),
        (["model.py", "--md", "none/out.md"], "there is no folder none"),
        (["model.py", "--junit", "."], "is a folder"),
        (["model.py", "--baseline", "."], "is a folder"),
        (["model.py", "--arg", "width"], "--arg 'width' is not name=value"),
        (["model.py", "--fast"], "--fast"),
    ],
)
def test_a_wrong_call_is_one_error_and_exit_code_2(arguments, message, capsys):
    # WHEN
    code, told = _check(*arguments)
    # THEN
    assert code == 2
    assert message in told
    assert told.count("error:") == 1
    assert "Traceback" not in told
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize("text", ['{"schema": "dnnmem.baseline/9"}', "<<<<<<< HEAD\n", "\0\0"])
def test_a_faulty_baseline_is_told_before_anything_runs(text, capsys):
    # GIVEN
    Path("b.json").write_text(text)
    # WHEN
    code, told = _check("model.py", "--baseline", "b.json", "--update-baseline")
    # THEN
    assert (code, told.count("error: b.json")) == (2, 1)
    assert Path("b.json").read_text() == text
    assert capsys.readouterr() == ("", "")
