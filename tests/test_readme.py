"""The README promises what there is: its options, hooks, files and exit codes exist, and its report adds up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dnnmem.estimator import errors


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


def _run(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "dnnmem", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd).stdout


def test_every_option_and_command_it_names_exists(text: str, tmp_path: Path) -> None:
    help_ = "".join(_run(name, "--help", cwd=tmp_path) for name in ("profile", "run", "view", "diff", "estimate"))
    own = re.sub(r"-- train\.py.*", "", text)  # what follows is the script's
    assert set(re.findall(r"(?<![\w-])--[a-z]+", own)) <= set(re.findall(r"--[a-z-]+", help_))
    commands = re.findall(r"^  (\w+)  ", _run("--help", cwd=tmp_path), re.MULTILINE)
    assert set(re.findall(r"dnnmem (profile|run|init|devices|doctor|\w+(?=`))", text)) <= set(commands)


def test_every_gpu_it_names_is_known(text: str, tmp_path: Path) -> None:
    known = _run("devices", cwd=tmp_path).split()
    assert set(re.findall(r"--gpu ([\w-]+)", text)) <= set(known)


def test_every_file_of_the_project_it_names_exists(text: str, root: Path) -> None:
    named = re.findall(r"\b(?:src|sample_models)/[\w./-]+\.\w+", text)
    assert named
    assert not [name for name in named if not (root / name).is_file()]


def test_its_exit_codes_are_those_of_the_errors(text: str) -> None:
    told = {int(code) for code in re.findall(r"^\| (\d) \|", text, re.MULTILINE)}
    raised = {e.exit_code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.DnnmemError)}
    assert told == raised | {0}


def test_the_report_it_shows_adds_up(text: str) -> None:
    # GIVEN the JSON that it prints  WHEN its parts are summed  THEN they are the total
    found = re.search(r'"parts": (\{[^}]*\})', text)
    total = re.search(r'"total_bytes": (\d+)', text)
    assert found
    assert total
    assert sum(json.loads(found[1]).values()) == int(total[1])


def test_the_template_of_init_can_be_profiled(tmp_path: Path) -> None:
    # GIVEN the file that `dnnmem init` writes  WHEN it is profiled, saved and read again
    _run("init", cwd=tmp_path)
    first = _run(
        "profile", "model.py", "--batch=4", "--device=fake", "--json=-", "--save=s.trace.json.gz", cwd=tmp_path
    )
    again = _run("profile", "s.trace.json.gz", "--json=-", cwd=tmp_path)
    # THEN both profiles are of the same bytes
    assert json.loads(first)["total_bytes"] == json.loads(again)["total_bytes"] > 0
