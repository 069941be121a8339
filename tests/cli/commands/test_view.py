"""`dnnmem view` from end to end: snapshots and saved traces in, reports and other viewers' files out."""

from __future__ import annotations

import io
import json
import pickle

import jsonschema
import pytest

from dnnmem.cli.app import run
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace_file import save_trace
from tests.cli.commands.test_profile import small_step
from tests.profilers.test_snapshot_trace import training_step

MIB = 2**20


def _run(*arguments):
    text = io.StringIO()
    return run([str(argument) for argument in arguments], stderr=text), text.getvalue()


@pytest.fixture
def snapshot(tmp_path):
    path = tmp_path / "memory.pickle"
    path.write_bytes(pickle.dumps(training_step(), protocol=4))
    return path


def test_a_snapshot_has_the_peak_and_parts_of_a_profile(snapshot, root, capsys):
    # WHEN
    code, _ = _run("view", snapshot, "--json", "-")
    # THEN it is a profile by its schema, and every byte of the peak has a kind
    value = json.loads(capsys.readouterr().out)
    assert code == 0
    jsonschema.validate(value, json.loads((root / "src/dnnmem/schemas/profile-1.schema.json").read_text()))
    assert (value["device"], value["target"]) == ("snapshot", "memory.pickle")
    held = {kind: nbytes // MIB for kind, nbytes in value["parts"].items() if nbytes}
    assert held == {"param": 8, "grad": 8, "optimizer": 8, "temp": 4, "fragmentation": 12}
    assert value["peak"]["reserved_bytes"] == 40 * MIB
    assert value["total_bytes"] == 40 * MIB


def test_a_saved_trace_is_viewed_as_profile_shows_it(tmp_path, capsys):
    # GIVEN
    path = tmp_path / "step.trace.json.gz"
    save_trace(small_step("l4-24gb"), Measurement(), path)
    # WHEN
    assert _run("view", path, "--json", "-")[0] == 0
    viewed = capsys.readouterr().out
    assert _run("profile", path, "--json", "-")[0] == 0
    # THEN
    assert viewed == capsys.readouterr().out


def test_other_viewers_files_are_written_and_named(snapshot, tmp_path, capsys):
    # WHEN
    code, _ = _run(
        "view", snapshot, "--snapshot", tmp_path / "o.pickle", "--perfetto", tmp_path / "o.json", "--format", "md"
    )
    # THEN
    assert code == 0
    assert capsys.readouterr().err == f"wrote {tmp_path / 'o.pickle'}\nwrote {tmp_path / 'o.json'}\n"
    assert (tmp_path / "o.pickle").stat().st_size
    assert json.loads((tmp_path / "o.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps(print), "it names builtins.print, and a memory snapshot names nothing"),
        (pickle.dumps({"segments": [], "device_traces": [[]]})[:-8], "is not a memory snapshot"),
        (b"", "is not a memory snapshot"),
        (pickle.dumps([1, 2]), "is not a memory snapshot as PyTorch writes it"),
        (pickle.dumps({"segments": [{"device": 0}], "device_traces": [[]]}), "KeyError: 'total_size'"),
        (b"\x1f\x8b123", "not a whole gzip file"),
    ],
    ids=["code", "truncated", "empty", "other", "newer", "gzip"],
)
def test_a_file_that_is_no_snapshot_is_an_error_of_two_lines(content, said, tmp_path):
    # GIVEN
    path = tmp_path / "bad.pickle"
    path.write_bytes(content)
    # WHEN
    code, told = _run("view", path)
    # THEN
    assert code == 2
    assert said in told
    assert "Traceback" not in told


def test_a_file_of_two_gigabytes_is_refused_before_it_is_read(tmp_path):
    # GIVEN a sparse file
    path = tmp_path / "huge.pickle"
    with path.open("wb") as file:
        file.truncate(2 * 2**30)
    # WHEN
    code, told = _run("view", path)
    # THEN
    assert code == 2
    assert "has 2.00 GiB; at most 1.00 GiB are read" in told


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ({"schema": "dnnmem.profile/1"}, "by dnnmem diff A B"),
        ({"schema": "dnnmem.diff/1"}, "by dnnmem diff A B"),
        ({"schema": "dnnmem.run/1"}, "by dnnmem run"),
        ({"traceEvents": []}, "_dump_snapshot"),
    ],
)
def test_a_file_of_another_command_is_told_from_a_snapshot(data, hint, tmp_path):
    # GIVEN JSON that something else wrote
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data, indent=2))
    # WHEN
    code, told = _run("view", path)
    # THEN
    assert code == 2
    assert "is JSON, and no memory snapshot or saved step" in told
    assert hint in " ".join(told.split())


def test_a_missing_file_and_an_index_in_vain(tmp_path):
    path = tmp_path / "step.trace.json.gz"
    assert _run("view", path)[0] == 2
    save_trace(small_step("l4-24gb"), Measurement(), path)
    code, told = _run("view", path, "--index", "1")
    assert code == 2
    assert "is a recorded step of one GPU" in told
