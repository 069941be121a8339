"""`dnnmem validate` prints errors by source, GPU and strategy, writes its published JSON, and refuses what is wrong."""

from __future__ import annotations

import json
import os

import jsonschema
import pytest

from dnnmem.cli import validation_run
from dnnmem.cli.app import run
from dnnmem.cli.export.validate_json import json_schema
from dnnmem.estimator.validation.score import Prediction


@pytest.fixture
def vtrain(root, monkeypatch):
    """The command, its predictions 10 % too long."""

    def predict(found, _recorded, _progress):
        return [
            Prediction(
                case=case,
                metric="" if case.reason else "step_seconds",
                measured=case.measured_seconds,
                predicted=None if case.reason else case.measured_seconds * 1.1,
                interval=None if case.reason else (0.1, 0.2),
                reason=case.reason,
            )
            for case in found
        ]

    monkeypatch.setattr(validation_run, "record", lambda *_, **__: {})
    monkeypatch.setattr(validation_run, "predict", predict)
    return [
        str(root / f"tests/accuracy/published/{name}.csv")
        for name in ("vtrain_multi", "megatron_selective_recompute_2022")
    ]


def test_the_tables_hold_errors_by_source_gpu_and_strategy_and_what_is_missed(vtrain, capsys):
    assert run(["validate", *vtrain]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["vtrain_multi", "time", "68", "68", "10.0", "%", "10.0", "%", "10.0", "%", "1.000"] in lines
    assert ["megatron_selective_recompute_2022", "time", "36", "8"] in [line[:4] for line in lines]
    assert ["a100-sxm-80gb", "time", "76", "76"] in [line[:4] for line in lines]
    assert any(line[:3] == ["ddp", "+", "tp"] for line in lines)
    assert any(line[:2] == ["megatron_selective_recompute_2022", "28"] for line in lines)


def test_json_validates_against_the_published_schema(vtrain, capsys, root):
    assert run(["validate", *vtrain, "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    jsonschema.validate(value, json.loads((root / "src/dnnmem/schemas/validate-1.schema.json").read_text()))
    assert value["schema"] == "dnnmem.validate/1"
    keys = {
        "source",
        "metric",
        "rows",
        "predicted",
        "median_abs_error",
        "mean_abs_error",
        "worst_abs_error",
        "spearman",
    }
    assert [set(result) for result in value["results"]] == [keys, keys]
    assert len(value["rows"]) == sum(result["rows"] for result in value["results"]) == 68 + 36
    assert all((row["predicted"] is None) == bool(row["reason"]) for row in value["rows"])


def test_the_published_schema_is_the_one_of_the_models(root):
    path = root / "src/dnnmem/schemas/validate-1.schema.json"
    if os.environ.get("DNNMEM_REWRITE_GOLDEN") == "1":
        path.write_text(json_schema(), encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json_schema())


def test_markdown_is_for_a_document(vtrain, capsys):
    assert run(["validate", *vtrain, "--format", "md", "--source", "vtrain_multi"]) == 0
    out = capsys.readouterr().out
    assert "| source | what | rows | predicted | median | mean | worst | rank |" in out
    assert "| vtrain\\_multi | time | 68 | 68 | 10.0 % | 10.0 % | 10.0 % | 1.000 |" in out
    assert "megatron" not in out


def test_a_limit_takes_rows_of_the_whole_table(vtrain, capsys):
    run(["validate", *vtrain, "--json", "-", "--limit", "2", "--source", "vtrain_multi"])
    assert [row["line"] for row in json.loads(capsys.readouterr().out)["rows"]] == [2, 36]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "none"], "--source none is none of the tables' sources"),
        (["none.csv"], "none.csv cannot be read"),
        (["--limit", "0"], "--limit"),
        (["--format", "csv"], "--format is 'csv'"),
    ],
)
@pytest.mark.usefixtures("vtrain")
def test_what_cannot_be_done_is_told(capsys, arguments, said):
    assert run(["validate", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_without_tables_it_says_where_they_would_be(monkeypatch, capsys, tmp_path):
    from dnnmem.cli.commands import validate

    monkeypatch.setattr(validate, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    monkeypatch.chdir(tmp_path)
    assert run(["validate"]) == 2
    assert "tests/accuracy/published" in capsys.readouterr().err
