import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.cli.render.chart import chart, columns, sample
from dnnmem.estimator.timeline import Timeline
from dnnmem.estimator.trace import Kind


def curve(param, temp):
    kinds = {kind: np.zeros(len(temp), np.int64) for kind in Kind}
    kinds[Kind.PARAM][:] = param
    kinds[Kind.TEMP][:] = temp
    allocated = sum(kinds.values())
    op = np.arange(-1, len(temp) - 1, dtype=np.int32)
    return Timeline(op=op, kinds=kinds, allocated=allocated, peak=int(allocated.argmax()))


def draw(param, temp, phases=(), width=36):
    picture = chart(curve(param, temp), phases, width=width, color=False, unicode=False, height=4)
    return [line.plain for line in picture]


def test_kinds_are_stacked_the_peak_is_marked_and_phases_stand_below():
    assert draw(100, [0, 0, 100, 0, 300, 100], phases=(("forward", 0), ("backward", 3))) == [
        "                            v peak",
        "     400 B |                tttt",
        "           |                tttt",
        "     200 B |        tttt    tttttttt",
        "         0 |PPPPPPPPPPPPPPPPPPPPPPPP",
        "            |forward    |backward",
        "            t temporaries",
        "            P parameters",
    ]


def test_phases_in_little_room_are_shortened_and_rounds_are_shown():
    phases = [("forward", 0), ("backward", 2), ("forward", 4), ("backward", 6), ("step", 9)]

    assert draw(1, [1] * 10, phases, width=32)[5] == "            |fwd|bwd|fwd|bwd  |s"


def test_the_mark_of_a_late_peak_stays_within_the_width():
    assert draw(0, [0, 0, 0, 4], width=24)[0] == "                peak v"


def test_a_step_without_memory_has_no_picture():
    assert draw(0, [0, 0]) == []


def test_colour_fills_with_one_character_and_styles_it():
    picture = chart(curve(1, [1, 0]), (), width=20, color=True, unicode=True, height=2)

    assert {span.style for span in picture[1].spans} == {"red"}
    assert set(picture[1].plain.split("│")[1]) <= {"█", " "}


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200), st.integers(1, 60))
def test_no_peak_is_averaged_away(temp, width):
    line = curve(0, temp)

    events = sample(line, columns(len(temp), width))

    assert len(events) == width
    assert events == sorted(events)
    assert max(line.allocated[events]) == max(temp)
