"""`dnnmem check` on a history whose truth is known: every regression is found at its layer, and nothing else is.

All commits are measured in one child process; `benchmarks/check_evidence.py history` does it with git, one check each.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dnnmem.cli.check_request import prepare_check
from dnnmem.cli.check_run import check_steps
from dnnmem.estimator.baseline import Limits, blame, judge
from tests.accuracy.commits import COMMITS, FIRST, TARGET, after, write


@pytest.fixture(name="entries", scope="module")
def _entries(tmp_path_factory):
    """What each commit needs, the one before them first."""
    folder = tmp_path_factory.mktemp("history")
    names, files = [], FIRST
    for number in range(len(COMMITS) + 1):
        files = after(files, COMMITS[number - 1]) if number else files
        moved = {name.replace("nets/", f"nets{number}/"): text for name, text in files.items()}
        write(folder / str(number), {**moved, TARGET: moved[TARGET].replace("from nets ", f"from nets{number} ")})
        names.append(f"{number}/{TARGET}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        asked = prepare_check(names, {"batch": 8, "gpu": "a10g"}, {}, {}, folder=folder)
        found = check_steps([replace(step, name=TARGET) for step in asked.steps], {})
    assert [step.error for step in found] == [None] * len(found)
    return [step.verdict.entry for step in found]


def test_five_commits_are_told_with_their_layer_and_seven_are_not(entries):
    # GIVEN a baseline that is renewed where the check asks for it
    accepted = entries[0]
    for commit, entry in zip(COMMITS, entries[1:], strict=True):
        # WHEN
        verdict = judge(entry, {accepted.key.text: accepted}, Limits())
        # THEN
        assert verdict.outcome == commit.outcome, commit.message
        if commit.outcome != "ok":
            assert re.match(commit.layer, blame(verdict)[0].label), (commit.message, blame(verdict)[:4])
            accepted = entry
