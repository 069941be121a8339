"""README.md and docs promise what there is: command lines parse, files and GPUs exist, the report shown adds up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from dnnmem.cli.app import app
from dnnmem.estimator import errors
from dnnmem.estimator.devices import find_device

DOCS = ("README.md", *(f"docs/{name}.md" for name in ("profile", "run", "estimate", "snapshots", "calibrate", "ci",
        "fit-24gib", "plan-8xh100", "python", "pytest", "validate", "programs", "gradients")))  # fmt: skip
_LINE = re.compile(r"(?:^ {4}(?:\$ )?|^\$ |`|run: )dnnmem ([a-z]+(?: [^`\n#]*)?)", re.MULTILINE)


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return "\n".join((root / name).read_text(encoding="utf-8") for name in DOCS if (root / name).is_file())


def _run(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "dnnmem", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd).stdout


def _options() -> dict[str, set[str]]:
    """Of each command, its options."""
    group = typer.main.get_command(app)
    return {
        name: {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
        | {"--help", "-h"}
        for name, command in group.commands.items()
    }


def _wrong(text: str) -> list[str]:
    """Command lines of a text that name a command or an option which is not there."""
    known, wrong = _options(), []
    for found in _LINE.finditer(text.replace("\\\n", " ")):
        name, _, rest = found[1].partition(" ")
        own = rest.partition(" -- ")[0] if name == "run" else rest  # what follows is the script's
        options = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", own.partition("    ")[0]))
        if name not in known or options - known[name]:
            wrong.append(found[0])
    return wrong


def test_every_command_line_is_one(text: str) -> None:
    assert len(_LINE.findall(text)) > 30
    assert not _wrong(text)


def test_every_option_of_the_prose_is_one(root: Path) -> None:
    told = "".join((root / name).read_text("utf-8") for name in DOCS[:5])
    assert set(re.findall(r"`(--[a-z-]+)", told)) <= set().union(*_options().values())


@pytest.mark.parametrize(
    "line", ["dnnmem profle model.py", "dnnmem profile model.py --bach 8", "dnnmem run --bach 1 -- a.py"]
)
def test_a_command_line_that_is_none_is_found(line: str) -> None:
    assert _wrong(f"    {line}\n")
    assert not _wrong("    dnnmem run --gpus 8 -- train.py --anything\n")


def test_every_picture_and_page_it_links_exists(root: Path) -> None:
    for name in DOCS:
        if (root / name).is_file():
            links = re.findall(r"\]\(([^):#]+)\)", (root / name).read_text("utf-8"))
            assert not [link for link in links if not ((root / name).parent / link).exists()]


def test_pictures_are_small_and_load_nothing(root: Path) -> None:
    pictures = [*(root / "docs/pictures").iterdir()]
    assert pictures
    assert all(picture.stat().st_size < 300_000 for picture in pictures)
    assert not [p for p in pictures if p.suffix == ".svg" and re.search(r"url\(.?http", p.read_text("utf-8"))]


def test_every_gpu_it_names_is_known(text: str) -> None:
    names = set(re.findall(r"--gpu ([\w-]+)", text))
    assert names
    assert all(find_device(name) for name in names)


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
