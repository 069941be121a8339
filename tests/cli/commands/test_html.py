"""`--html` of every command that has it: a whole page beside the other outputs, or nothing."""

from __future__ import annotations

import io

import pytest

from dnnmem.cli.app import run
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace_file import save_trace
from tests.cli.render.html.conftest import Page, check_safe
from tests.estimator.passes.steps import gpt


@pytest.fixture(name="saved", scope="module")
def _saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("html")
    for blocks in (2, 3):
        save_trace(gpt(blocks), Measurement(), folder / f"{blocks}.trace.json.gz")
    return folder


def told(*arguments):
    """Exit code and what stderr said."""
    return run([*map(str, arguments)], stderr=(text := io.StringIO())), text.getvalue()


COMMANDS = {
    "profile": ("profile", "3.trace.json.gz", "--gpu", "h100-sxm-80gb"),
    "view": ("view", "3.trace.json.gz"),
    "diff": ("diff", "2.trace.json.gz", "3.trace.json.gz"),
    "estimate": ("estimate", "3.trace.json.gz", "--cluster", "h100:8", "--set", "mesh.tp=2"),
}


def arguments_of(command, saved):
    return [str(saved / word) if word.endswith(".gz") else word for word in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_is_written_beside_json_and_the_terminal(command, saved, tmp_path, capsys):
    # GIVEN a saved step  WHEN a page and JSON are asked for  THEN both are there, whole, and so is the terminal's
    page, data = tmp_path / "out.html", tmp_path / "out.json"
    assert told(*arguments_of(command, saved), "--html", page, "--json", data) == (0, "")
    shown = capsys.readouterr()
    assert shown.out.strip()
    assert shown.err == f"wrote {data}\nwrote {page}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "out.json"]
    read = Page(page.read_text("utf-8"))
    check_safe(read)
    assert not read.open
    assert page.stat().st_size < 2**20
    # AND a page has no clock in it: the same step is the same page
    assert told(*arguments_of(command, saved), "--html", tmp_path / "again.html", "-q")[0] == 0
    assert (tmp_path / "again.html").read_text("utf-8") == page.read_text("utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_goes_to_stdout_too(command, saved, capsys):
    assert told(*arguments_of(command, saved), "--html", "-") == (0, "")
    text = capsys.readouterr().out
    assert text.startswith("<!doctype html>")
    assert text.endswith("</html>\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_that_cannot_be_written_is_refused_first(command, saved, tmp_path):
    code, error = told(*arguments_of(command, saved), "--html", tmp_path / "none" / "out.html")
    assert code == 2
    assert error.startswith(f"error: --html {tmp_path}/none/out.html: there is no folder ")


def test_the_layers_of_a_profile_and_of_an_estimate_are_those_of_the_model(saved, capsys):
    for command in ("profile", "estimate"):
        assert told(*arguments_of(command, saved), "--html", "-")[0] == 0
        texts = Page(capsys.readouterr().out).texts
        assert "blocks.0-2.attention.qkv" in texts
        assert "blocks.2.attention.qkv" in texts  # unfolded, to be asked for
