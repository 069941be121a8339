"""`dnnmem diff` from end to end."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace

import pytest

from dnnmem.cli.app import run
from dnnmem.cli.commands.diff import load_side
from dnnmem.cli.export.profile_json import to_json
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Event
from dnnmem.estimator.trace_file import save_trace
from tests.cli.commands.test_profile import small_step
from tests.profilers.test_snapshot_trace import training_step


def _grown():
    """The step with an activation of twice the size."""
    trace = small_step("l4-24gb")
    storages = {**trace.storages, 1: replace(trace.storages[1], nbytes=16384)}
    ops = tuple(
        replace(op, events=tuple(Event(2 * n if i == 1 else n, s, i) for n, s, i in op.events)) for op in trace.ops
    )
    return replace(trace, storages=storages, ops=ops)


@pytest.fixture
def files(tmp_path):
    for name, trace in (("a", small_step("l4-24gb")), ("b", _grown())):
        save_trace(trace, Measurement(), tmp_path / f"{name}.trace.json.gz")
    return tmp_path / "a.trace.json.gz", tmp_path / "b.trace.json.gz"


def _run(*arguments):
    text = io.StringIO()
    return run([str(argument) for argument in arguments], stderr=text), text.getvalue()


def test_what_grew_is_named_with_its_bytes_and_where_it_began(files, capsys):
    # WHEN
    assert _run("diff", *files, "--json", "-")[0] == 0
    # THEN
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "dnnmem.diff/1"
    assert found["modules"] == [
        {
            "module": "fc", "kind": "activation", "before_bytes": 8192, "after_bytes": 16384, "grown_bytes": 8192,
            "since": "forward, aten.mm.default",
        }
    ]  # fmt: skip
    changed = {part["kind"]: part["grown_bytes"] for part in found["parts"] if part["grown_bytes"]}
    assert sum(changed.values()) == found["grown_bytes"]
    assert changed["activation"] == 8192


def test_people_read_it_as_a_table(files, capsys):
    assert _run("diff", *files)[0] == 0
    text = capsys.readouterr().out
    assert "+8.0 KiB" in text
    assert "aten.mm, forward" in text


def test_a_step_against_itself_has_nothing_to_tell(files, capsys):
    assert _run("diff", files[0], files[0], "--format", "md")[0] == 0
    text = capsys.readouterr().out
    assert "B needs as much as A" in text
    assert "| module |" not in text


def test_a_profile_stands_in_for_its_trace(files, tmp_path, capsys):
    # GIVEN the first as --json wrote it
    path = tmp_path / "a.json"
    path.write_text(to_json(load_side(files[0]).profile))
    # WHEN
    assert _run("diff", path, files[1], "--json", "-")[0] == 0
    # THEN layers tell what grew, but nobody knows since when
    (change,) = json.loads(capsys.readouterr().out)["modules"]
    assert (change["module"], change["kind"], change["grown_bytes"], change["since"]) == ("fc", "activation", 8192, "")


def test_a_snapshot_is_compared_like_any_other(files, tmp_path, capsys):
    path = tmp_path / "memory.pickle"
    path.write_bytes(pickle.dumps(training_step(), protocol=4))
    assert _run("diff", files[0], path, "--json", "-")[0] == 0
    assert json.loads(capsys.readouterr().out)["after"]["device"] == "snapshot"


def test_a_file_of_another_kind_is_an_error(files, tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"schema": "other"}')
    code, told = _run("diff", path, files[0])
    assert code == 2
    assert "is not a profile (dnnmem.profile/1)" in told
