"""From a log written by hand to a trace: sums in place, a step that can follow itself, growth, and what is left out."""

from __future__ import annotations

import pytest

from dnnmem.estimator.trace import Kind, Origin, Phase
from dnnmem.profilers.modules import Place
from dnnmem.profilers.record import Block, Entry, Log
from dnnmem.profilers.rewrite import to_trace


def program(*operators, blocks, first=0, began=0):
    """A log: each operator is (phase, reads, writes, events, accumulates); `first` operators come before the step."""
    log = Log(blocks=dict(enumerate(blocks)))
    for tick, (phase, reads, writes, events, accumulates) in enumerate(operators, start=1):
        node = tick if phase is Phase.BACKWARD else None
        place = Place(phase, ("fc",), "model.py:1", node)
        start = len(log.events)
        log.events += events
        log.entries.append(Entry(f"op{tick}", place, reads, writes, start, 0, 0, None, tick, accumulates=accumulates))
    starts = [entry.start for entry in log.entries]
    log.steps = [(0, began)] if not first else [(0, 0), (first, starts[first])]
    log.ticks = [0] * len(log.steps)
    return log


def block(nbytes=8, *, made_by=0, died=-1, **fields):
    return Block(nbytes, (nbytes,), "uint8", made_by, died=died, **fields)


def trace_of(log, **options):
    return to_trace(log, **{"modules": (), "batch": {}, "origin": Origin(), **options})


def events(trace):
    return [[(event.nbytes, event.storage) for event in op.events] for op in trace.ops]


FORWARD, BACKWARD, STEP = Phase.FORWARD, Phase.BACKWARD, Phase.STEP


def summed(died):
    """Two gradients, and their sum, made while the first dies at dispatch `died`."""
    return program(
        (BACKWARD, (), (0,), [(8, 0)], None),
        (BACKWARD, (), (1,), [(8, 1)], None),
        (BACKWARD, (0, 1), (2,), [(8, 2), (-8, 0), (-8, 1)], (0, 2)),
        (BACKWARD, (2,), (3,), [(8, 3), (-8, 2), (-8, 3)], None),
        blocks=[block(died=died), block(died=3), block(died=4), block(died=4)],
    )


def test_a_sum_goes_into_its_first_term_if_that_dies_with_it():
    trace, growth = trace_of(summed(died=3))
    assert growth == 0
    assert [op.name for op in trace.ops] == ["op1", "op2", "aten.add_.Tensor", "op4"]
    assert events(trace) == [[(8, 0)], [(8, 1)], [(-8, 1)], [(8, 3), (-8, 0), (-8, 3)]]
    # THEN who reads the sum reads the first term's storage
    assert (trace.ops[2].writes, trace.ops[3].reads) == ((0,), (0,))


def test_a_first_term_that_somebody_holds_is_kept():
    trace, _ = trace_of(summed(died=4))
    assert [op.name for op in trace.ops] == ["op1", "op2", "op3", "op4"]
    assert trace.peak_bytes() == 24


def test_sums_of_sums_are_one_storage():
    log = program(
        (BACKWARD, (), (0,), [(8, 0)], None),
        (BACKWARD, (0,), (1,), [(8, 1), (-8, 0)], (0, 1)),
        (BACKWARD, (1,), (2,), [(8, 2), (-8, 1)], (1, 2)),
        (STEP, (2,), (), [(-8, 2)], None),
        blocks=[block(died=2), block(died=3), block(died=4, kind=Kind.GRAD, name="weight", module=("fc",))],
    )
    trace, _ = trace_of(log)
    assert events(trace) == [[(8, 0)], [], [], [(-8, 0)]]
    # THEN it is what its last name says
    assert (trace.storages[0].kind, trace.storages[0].name) == (Kind.GRAD, "weight")
    assert trace.ops[-1].reads == (0,)


def test_gradients_made_in_place_of_old_ones_get_their_names():
    # GIVEN a gradient that the step finds, frees, and makes again
    gradient = {"kind": Kind.GRAD, "name": "weight", "module": ("fc",)}
    log = program(
        (BACKWARD, (), (0,), [(8, 0)], None),
        (FORWARD, (0,), (), [(-8, 0)], None),
        (BACKWARD, (), (1,), [(8, 1)], None),
        (STEP, (1,), (), [], None),
        blocks=[block(died=2, **gradient), block(made_by=2, **gradient)],
        first=1,
    )
    trace, growth = trace_of(log)
    assert growth == 0
    assert trace.pinned == {0}
    assert events(trace) == [[(-8, 0)], [(8, 0)], []]
    assert trace.ops[2].reads == (0,)


def test_a_new_one_made_before_the_old_one_dies_changes_names_with_it():
    # GIVEN a cache that is replaced while the old one still lives
    log = program(
        (FORWARD, (), (0,), [(8, 0)], None),
        (FORWARD, (), (1,), [(8, 1)], None),
        (FORWARD, (0, 1), (), [(-8, 0)], None),
        (FORWARD, (1,), (), [], None),
        blocks=[block(died=3), block(made_by=1)],
        first=1,
    )
    trace, growth = trace_of(log)
    assert growth == 0
    # THEN what is freed is the temporary name, and the found storage is what lives on
    assert events(trace) == [[(8, 1)], [(-8, 1)], []]
    assert [op.reads for op in trace.ops] == [(), (0, 1), (0,)]


@pytest.mark.parametrize(("place", "kind"), [(("<loss>",), Kind.INPUT), (("fc",), Kind.BUFFER)])
def test_what_the_loop_makes_anew_outside_of_modules_is_its_batch(place, kind):
    # GIVEN a batch that the loop's variable holds until it has the next one, and the same within a module
    log = program(
        (FORWARD, (), (0,), [(8, 0)], None),
        (FORWARD, (), (1,), [(8, 1), (-8, 0)], None),
        (FORWARD, (1,), (), [], None),
        blocks=[block(died=2), block(made_by=1)],
        first=1,
    )
    for entry in log.entries:
        entry.place = entry.place._replace(module=place)
    trace, _ = trace_of(log)
    assert [trace.storages[i].kind for i in trace.pinned] == [kind]


def test_what_a_step_leaves_beyond_what_it_found_is_growth():
    log = program((FORWARD, (), (0,), [(8, 0)], None), (FORWARD, (), (1,), [(4, 1)], None), blocks=[block(), block(4)])
    trace, growth = trace_of(log)
    assert growth == 12
    # THEN the trace ends it, so that it can follow itself
    assert events(trace) == [[(8, 0)], [(4, 1), (-8, 0), (-4, 1)]]


def test_what_a_step_only_frees_is_negative_growth():
    log = program(
        (FORWARD, (), (0,), [(8, 0)], None), (FORWARD, (0,), (), [(-8, 0)], None), blocks=[block(died=2)], first=1
    )
    trace, growth = trace_of(log)
    assert growth == -8
    assert events(trace) == [[(-8, 0), (8, 0)]]


def test_operators_on_the_host_are_left_out():
    log = program(
        (FORWARD, (), (0,), [(8, 0)], None),
        (STEP, (1,), (1,), [], None),
        (STEP, (0,), (), [(-8, 0)], None),
        blocks=[block(died=3), block(4, made_by=-1, host=True)],
    )
    trace, _ = trace_of(log, seconds=[1.0, 2.0, 3.0])
    assert [(op.name, op.seconds) for op in trace.ops] == [("op1", 1.0), ("op3", 3.0)]
    assert 1 not in trace.storages


def test_a_storage_first_seen_in_the_step_was_there_before():
    # GIVEN a constant that no operator made, read in the middle of the step
    log = program(
        (FORWARD, (), (0,), [(8, 0)], None),
        (FORWARD, (0, 1), (), [(32, 1), (-8, 0)], None),
        blocks=[block(died=2), block(32, made_by=-1)],
    )
    trace, growth = trace_of(log)
    assert growth == 0
    assert trace.pinned == {1}
    assert trace.storages[1].kind is Kind.BUFFER
    assert trace.peak_bytes() == 40


def test_events_before_the_first_operator_have_one_of_their_own():
    log = program(
        (FORWARD, (), (0,), [(8, 0), (-8, 0)], None),
        (FORWARD, (), (1,), [(8, 1), (-8, 1)], None),
        blocks=[block(died=1), block(died=2)],
        first=1,
    )
    log.steps[1] = (1, 1)
    trace, _ = trace_of(log)
    assert [op.name for op in trace.ops] == ["dnnmem.begin", "op2"]


def test_saved_is_what_nodes_read_or_hooks_saw():
    # GIVEN forward blocks: one that hooks saw, one that a backward node reads, one that lives on unread
    log = program(
        (FORWARD, (), (0, 1, 2), [(8, 0), (8, 1), (8, 2)], None),
        (BACKWARD, (1,), (), [], None),
        (BACKWARD, (), (), [(-8, 0), (-8, 1), (-8, 2)], None),
        blocks=[block(died=3, saved=True), block(died=3), block(died=3)],
    )
    trace, _ = trace_of(log)
    assert [(s.kind, s.saved) for s in trace.storages.values()] == [
        (Kind.ACTIVATION, True),
        (Kind.ACTIVATION, True),
        (Kind.ACTIVATION, False),
    ]
