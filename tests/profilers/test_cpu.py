"""The bare peak is exact, times are medians of repeats, and modules are described as the user knows them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dnnmem.profilers.capture import _median_seconds, describe_modules
from dnnmem.profilers.cpu import WallClock, peak_rise
from dnnmem.profilers.record import Log
from tests.models.vision import BasicBlock
from tests.profilers.recorded import loss_step, on_cpu, target_of

KIB = 1024


def test_the_rise_is_that_of_one_call():
    # GIVEN blocks of 3 and 2 KiB at once, then one of 4
    def run():
        a = torch.empty(3 * KIB, dtype=torch.uint8)
        b = torch.empty(2 * KIB, dtype=torch.uint8)
        del a, b
        torch.empty(4 * KIB, dtype=torch.uint8)

    assert peak_rise(run) == 5 * KIB


def test_what_was_there_before_is_no_rise():
    held = [torch.empty(KIB, dtype=torch.uint8)]

    # GIVEN a call that first frees what the last one left
    def run():
        held.clear()
        held.append(torch.empty(KIB, dtype=torch.uint8))

    assert peak_rise(run) == 0


def test_nothing_is_no_rise():
    assert peak_rise(lambda: None) == 0


def test_repeats_are_timed():
    target = target_of(lambda: nn.Linear(8, 8), lambda n: torch.randn(n, 8), loss_step(lambda m, b: m(b).sum()))
    trace, measured = on_cpu(target, repeats=3)
    assert measured.facts["repeats"] == 3
    assert measured.facts["threads"] == torch.get_num_threads()
    assert 0 < measured.step_seconds < 10
    assert all(op.seconds is None or op.seconds >= 0 for op in trace.ops)
    assert sum(op.seconds or 0 for op in trace.ops) > 0
    assert WallClock.seconds(1.0, 3.5) == 2.5


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([[9], [1], [3], [2]], [2]),  # the first step warms up
        ([[9, 9], [1, 1], [2]], [2]),  # a step of other operators does not count
        ([[9], [4]], [4]),
        ([[9], [None]], [None]),
    ],
)
def test_seconds_are_medians_of_steps_alike(steps, expected):
    log = Log()
    for step in steps:
        log.steps.append((len(log.entries), 0))
        log.entries += [SimpleNamespace(name=f"op{i}", times=None if t is None else (0, t)) for i, t in enumerate(step)]
    assert _median_seconds(log, WallClock()) == expected


def test_modules_are_described_with_the_line_of_their_class():
    rows = describe_modules(BasicBlock(4, 4, 1))
    assert [(row.path, row.type) for row in rows[:3]] == [((), "BasicBlock"), (("first",), "Sequential"),
                                                         (("first", "0"), "Conv2d")]  # fmt: skip
    file, _, line = rows[0].source.rpartition(":")
    assert file.endswith("vision.py")
    assert int(line) > 1
    # THEN torch's own classes have none, nor has one without a file
    assert rows[1].source == ""
    space = {"__name__": "made"}
    exec("import torch\nclass Made(torch.nn.Linear):\n    pass\n", space)  # noqa: S102  # a class without a file
    assert describe_modules(space["Made"](2, 2))[0].source == ""
