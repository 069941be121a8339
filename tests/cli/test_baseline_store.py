"""The baseline's file: whole or refused, old or new, and the work of two jobs at once."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace

import pytest

from dnnmem.cli.baseline_store import load_baseline, update_baseline
from dnnmem.estimator.baseline_file import MOST_BYTES, to_text
from dnnmem.estimator.errors import UsageError
from tests.cli.export.check.findings import entry

GOOD = to_text([entry()])


def _bad(change):
    """A good file with one thing changed."""
    assert change[0] in GOOD
    return GOOD.replace(*change, 1).encode()


BAD = {
    "empty": b"",
    "blank": b"\n \n",
    "text": b"memory",
    "cut": GOOD[: len(GOOD) // 2].encode(),
    "two": (GOOD + GOOD).encode(),
    "binary": bytes(range(256)),
    "utf-16": GOOD.encode("utf-16"),
    "merged": GOOD.replace(' "steps"', '<<<<<<< HEAD\n "steps"\n=======\n>>>>>>> x').encode(),
    "deep": b"[" * 100_000,
    "number": b"3",
    "list": b"[]",
    "null": b"null",
    "other schema": _bad(("dnnmem.baseline/1", "dnnmem.baseline/2")),
    "no schema": b'{"steps": {}}',
    "steps a list": b'{"schema": "dnnmem.baseline/1", "steps": []}',
    "step a number": b'{"schema": "dnnmem.baseline/1", "steps": {"a": 1}}',
    "step empty": b'{"schema": "dnnmem.baseline/1", "steps": {"a": {}}}',
    "other key": _bad(('"target": "model.py"', '"target": "other.py"')),
    "no peak": _bad(('"allocated_bytes": 104857600', '"allocated": 1')),
    "half bytes": _bad(("104857600", "0.5")),
    "negative": _bad(("104857600", "-1")),
    "bytes in words": _bad(("104857600", '"100 MiB"')),
    "true bytes": _bad(("104857600", "true")),
    "huge number": _bad(("104857600", "9" * 5000)),
    "infinite time": _bad(('"step_seconds": null', '"step_seconds": Infinity')),
    "batch of lists": _bad(('"batch_size": 8', '"batch_size": []')),
    "gpu a number": _bad(('"gpu": null', '"gpu": 3')),
    "module without kind": _bad(('"modules": {}', '"modules": {"fc": 3}')),
    "endless range": _bad(('"modules": {}', '"modules": {"h.0-999999999 temp": 3}')),
    "falling range": _bad(('"modules": {}', '"modules": {"h.9-1 temp": 3}')),
    "parts a list": _bad(('"parts": {}', '"parts": []')),
    "hostile name": b'{"schema": "dnnmem.baseline/1", "steps": {"\\n::error::\\u001b[2J<script>": {}}}',
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_baseline_is_one_error_that_names_it(name, tmp_path):
    # GIVEN
    path = tmp_path / "baseline.json"
    path.write_bytes(BAD[name])
    # WHEN
    with pytest.raises(UsageError) as caught:
        load_baseline(path)
    # THEN
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


def test_a_huge_file_is_refused_unread(tmp_path):
    # GIVEN
    path = tmp_path / "baseline.json"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    # THEN
    with pytest.raises(UsageError, match="67108865 bytes"):
        load_baseline(path)


def test_a_folder_in_its_place_is_refused(tmp_path):
    for work in (load_baseline, lambda path: update_baseline(path, [entry()])):
        with pytest.raises(UsageError, match="is a folder"):
            work(tmp_path)


def test_no_file_is_no_error(tmp_path):
    assert load_baseline(tmp_path / "none.json") is None


def test_an_update_changes_its_own_steps_only(tmp_path):
    # GIVEN
    path = tmp_path / "new" / "baseline.json"
    update_baseline(path, [entry("a.py", mib=1), entry("b.py", mib=2)])
    # WHEN
    update_baseline(path, [entry("b.py", mib=3)])
    # THEN
    known = load_baseline(path)
    assert [found.allocated_bytes >> 20 for found in known.values()] == [1, 3]
    assert sorted(file.name for file in path.parent.iterdir()) == [".gitignore", "baseline.json"]
    assert (path.parent / ".gitignore").read_text().splitlines()[-1] == ".*.tmp"


def test_a_faulty_file_is_not_overwritten(tmp_path):
    # GIVEN
    path = tmp_path / "baseline.json"
    path.write_bytes(BAD["merged"])
    # WHEN
    with pytest.raises(UsageError, match="conflict markers"):
        update_baseline(path, [entry()])
    # THEN
    assert path.read_bytes() == BAD["merged"]


def test_what_a_killed_job_left_beside_it_is_removed(tmp_path):
    # GIVEN
    path = tmp_path / "baseline.json"
    for name in (".baseline.json.123.tmp", ".baseline.json.4.tmp", ".other.json.123.tmp"):
        (tmp_path / name).write_text("{")
    # WHEN
    update_baseline(path, [entry()])
    # THEN
    assert sorted(file.name for file in tmp_path.iterdir()) == [".other.json.123.tmp", "baseline.json"]


def _write_some(path, first):
    for number in range(first, first + 10):
        update_baseline(path, [entry(f"{number}.py")])


def test_jobs_at_once_all_land(tmp_path):
    # GIVEN
    path = tmp_path / "baseline.json"
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_write_some, args=(path, first)) for first in (0, 10, 20, 30)]
    # WHEN
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    # THEN
    assert [job.exitcode for job in jobs] == [0] * 4
    assert len(load_baseline(path)) == 40
    assert os.listdir(tmp_path) == ["baseline.json"]  # noqa: PTH208 - hidden ones too


def test_a_file_is_the_same_whatever_the_order_of_updates(tmp_path):
    # GIVEN
    one, two = entry("a.py"), replace(entry("b.py"), parts={"temp": 1, "param": 2})
    # WHEN
    for name, order in (("x.json", [one, two]), ("y.json", [two, one])):
        for step in order:
            update_baseline(tmp_path / name, [step])
    # THEN
    assert (tmp_path / "x.json").read_bytes() == (tmp_path / "y.json").read_bytes()
