"""Answers that are kept: read back, added by many at a time, cut off in the middle, and kept nowhere."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from dnnmem.profilers.virtual_gpu.cudnn_cache import keep, key_of, open_answers
from dnnmem.profilers.virtual_gpu.cudnn_query import Engine

ENGINES = [Engine(38, 25837584, 1, 0), Engine(1, -1, 0, 1)]
WRITER = """
import pathlib, sys
from dnnmem.profilers.virtual_gpu.cudnn_cache import keep, open_answers
from dnnmem.profilers.virtual_gpu.cudnn_query import Engine
answers = open_answers(pathlib.Path(sys.argv[1]), 92400, "9.0")
for i in range(200):
    keep(answers, f"{sys.argv[2]}-{i}", [Engine(i, i, i, i)] * 40)
"""


def test_an_answer_is_found_again(tmp_path):
    # GIVEN an answer that was kept  WHEN the cache is opened again
    keep(open_answers(tmp_path, 92400, "9.0"), "a", ENGINES)
    # THEN it is there, for this version and GPU alone
    assert open_answers(tmp_path, 92400, "9.0").known == {"a": ENGINES}
    assert open_answers(tmp_path, 91002, "9.0").known == {}
    assert open_answers(tmp_path, 92400, "8.0").known == {}


def test_processes_write_at_the_same_time(tmp_path):
    # GIVEN three processes that write  WHEN they are done
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    # THEN no answer is lost or mixed up
    known = open_answers(tmp_path, 92400, "9.0").known
    assert known == {f"{name}-{i}": [Engine(i, i, i, i)] * 40 for name in "abc" for i in range(200)}


@given(cut=st.integers(min_value=0, max_value=60))
def test_a_line_that_was_cut_off_costs_only_itself(tmp_path_factory, cut):
    # GIVEN a file whose writer was killed at any byte of its line
    folder = tmp_path_factory.mktemp("cut")
    answers = open_answers(folder, 92400, "9.0")
    keep(answers, "a", ENGINES)
    keep(answers, "b", ENGINES)
    assert answers.path is not None
    whole = answers.path.read_bytes()
    answers.path.write_bytes(whole[: len(whole) // 2 + min(cut, len(whole) // 2 - 2)])
    # WHEN another one adds to it  THEN all others are there
    keep(open_answers(folder, 92400, "9.0"), "c", ENGINES)
    known = open_answers(folder, 92400, "9.0").known
    assert {"a", "c"} <= set(known) <= {"a", "b", "c"}
    assert all(engines == ENGINES for engines in known.values())


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    # GIVEN a place that can be no folder
    (tmp_path / "file").write_text("")
    answers = open_answers(tmp_path / "file", 92400, "9.0")
    # WHEN an answer is kept  THEN it is known as long as the process lasts
    keep(answers, "a", ENGINES)
    assert answers.known == {"a": ENGINES}
    assert open_answers(tmp_path / "file", 92400, "9.0").known == {}


def test_no_folder_keeps_nothing(tmp_path):
    answers = open_answers(None, 92400, "9.0")
    keep(answers, "a", ENGINES)
    assert answers.known == {"a": ENGINES}
    assert list(tmp_path.iterdir()) == []


def test_other_questions_have_other_keys():
    assert key_of({"mode": 0, "graph": []}) != key_of({"mode": 2, "graph": []})
