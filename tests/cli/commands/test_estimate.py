from __future__ import annotations

import io
import json

import jsonschema
import pytest

from dnnmem.cli.app import run
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace_file import save_trace
from tests.estimator.passes.steps import gpt


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("estimate") / "gpt.trace.json.gz"
    save_trace(gpt(3), Measurement(), path)
    return str(path)


def told(arguments):
    """Exit code and what stderr said."""
    return run(arguments, stderr=(text := io.StringIO())), text.getvalue()


def test_a_plan_has_its_price_on_the_terminal(saved, capsys):
    # GIVEN a saved step  WHEN a plan of it is estimated  THEN memory, time and what bounds it are told
    code, error = told(["estimate", saved, "--cluster", "h100:8", "--set", "mesh.tp=2", "--no-color"])
    text = capsys.readouterr().out
    assert (code, error) == (0, "")
    assert "plan: mesh.tp=2" in text
    assert "FITS: " in text
    assert " a step (nine of ten between " in text
    assert "blocks.0-2.attention.qkv" in text


@pytest.mark.parametrize("settings", [(), ("mesh.pp=2", "batch.accumulation=4")])
def test_json_holds_the_whole_estimate(saved, settings, capsys, root):
    arguments = [word for setting in settings for word in ("--set", setting)]
    assert told(["estimate", saved, "--cluster", "h100:8", *arguments, "--json", "-"])[0] == 0
    data = json.loads(capsys.readouterr().out)
    jsonschema.validate(data, json.loads((root / "src/dnnmem/schemas/estimate-1.schema.json").read_text()))
    assert sum(data["breakdown"].values()) == pytest.approx(data["step_seconds"])
    assert data["peak_reserved_bytes"] > data["peak_allocated_bytes"] > 0
    assert {layer["module"] for layer in data["layers"]} > {"blocks.0.mlp.0", "<optimizer>"}


def test_a_plan_may_come_from_a_file_and_change_further(saved, tmp_path, capsys):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"mesh": {"tp": 2}, "batch": {"accumulation": 4}}))
    arguments = ["--cluster", "h100:8", "--plan", str(file), "--set", "mesh.tp=4", "--format", "json"]
    assert told(["estimate", saved, *arguments])[0] == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["mesh"]["tp"], plan["batch"]["accumulation"]) == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cluster", "h100:8", "--set", "mesh.tp=16"], "= 16 ranks, but h100:8 has 8 GPUs"),
        (["--cluster", "h100:0"], "h100:0"),
        (["--cluster", "h1000"], "h1000"),
        (["--cluster", "h100:8", "--set", "tp=2"], "names nothing of a plan"),
        (["--cluster", "h100:8", "--plan", "missing.json"], "missing.json cannot be read"),
        (["--cluster", "h100:8", "--format", "csv"], "--format is 'csv'"),
        (["--cluster", "h100:8", "--batch", "4"], "is a recorded step"),
        ([], "--cluster"),
    ],
)
def test_a_wrong_call_is_one_error(saved, arguments, words):
    code, error = told(["estimate", saved, *arguments])
    assert code == 2
    assert words in error
    assert error.count("error:") == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mesh": {"tp": -1}}', "[" * 100_000, '{"schema": "other"}'])
def test_a_file_that_is_no_plan_is_one_error(saved, tmp_path, text):
    file = tmp_path / "plan.json"
    file.write_text(text)
    code, error = told(["estimate", saved, "--cluster", "h100:8", "--plan", str(file)])
    assert code == 2
    assert error.startswith("error: ")
