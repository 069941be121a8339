"""`dnnmem export` on the command line."""

import io
import json

from dnnmem.cli.app import run


def told(*arguments):
    """Exit code and what went wrong."""
    return run(["export", *arguments], stderr=(text := io.StringIO())), text.getvalue()


def test_a_plan_becomes_a_new_file(tmp_path, capsys):
    # GIVEN a plan's file
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"schema": "dnnmem.plan/1", "mesh": {"dp_shard": 8}, "sharding": {"strategy": "zero3"}}))
    out = tmp_path / "accelerate.yaml"
    # WHEN it is exported
    code, error = told("--plan", str(plan), "--to", "accelerate", "--block", "Block", "--out", str(out))
    # THEN the file tells where it is from, and the screen where it is
    assert (code, error) == (0, "")
    assert "from plan.json" in out.read_text()
    assert f"wrote {out}" in capsys.readouterr().err


def test_a_file_is_never_overwritten(tmp_path):
    # GIVEN a file that is there
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    # WHEN an export is to go there
    code, error = told("--to", "accelerate", "--out", str(out))
    # THEN it is refused, and the file stays
    assert code == 2
    assert "is not overwritten" in error
    assert out.read_text() == "mine"


def test_what_is_not_said_is_told(capsys):
    # WHEN a framework has no word for a setting
    code, error = told("--to", "accelerate", "--set", "offload.optimizer=true")
    # THEN the screen says so
    assert (code, error) == (0, "")
    assert "not said by accelerate: offload.optimizer=true" in capsys.readouterr().err


def test_an_unknown_framework_is_named():
    # WHEN the name is misspelt
    code, error = told("--to", "acelerate")
    # THEN the nearest is offered
    assert code == 2
    assert "did you mean accelerate?" in error


def test_blocks_are_found_in_the_model(root, capsys):
    # WHEN the target is given
    code, error = told(
        str(root / "sample_models" / "gpt.py"), "--batch", "1", "--seq", "16", "--arg", "layers=2",
        "--to", "accelerate", "--set", "mesh.dp_shard=2", "--set", "sharding.strategy=zero3",
    )  # fmt: skip
    # THEN its repeated block is wrapped
    assert (code, error) == (0, "")
    assert "fsdp_transformer_layer_cls_to_wrap: Block" in capsys.readouterr().out
