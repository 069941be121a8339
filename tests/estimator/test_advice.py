"""What would lower the peak: each advice against a step that has the fault, and one that has not."""

from __future__ import annotations

from dnnmem.estimator.advice import advise
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace

MIB = 2**20


def _names(trace):
    return {advice.name: advice.saves_bytes for advice in advise(trace)}


def _op(name, *events, phase=Phase.FORWARD, reads=(), writes=()):
    return Op(name=name, phase=phase, reads=reads, writes=writes, events=tuple(Event(n, 0, i) for n, i in events))


def _trace(ops, *storages, pinned=(), setup=()):
    return Trace(
        ops=tuple(ops),
        storages={s.id: s for s in storages},
        pinned=frozenset(pinned),
        setup=tuple(Event(n, 0, i) for n, i in setup),
    )


def test_a_step_without_faults_gets_no_advice():
    y = Storage(id=0, nbytes=40 * MIB, kind=Kind.ACTIVATION)
    assert _names(_trace([_op("f", (40 * MIB, 0), (-40 * MIB, 0))], y)) == {}


def test_fragmentation_is_what_expandable_segments_save():
    # GIVEN blocks of 30 MiB whose places a block of 60 MiB cannot use
    y = [Storage(id=i, nbytes=30 * MIB, kind=Kind.TEMP) for i in range(2)]
    ops = [_op("f", (30 * MIB, 0), (30 * MIB, 1)), _op("g", (-30 * MIB, 0), (-30 * MIB, 1)),
           _op("h", (60 * MIB, -1), (-60 * MIB, -1))]  # fmt: skip
    # THEN
    assert _names(_trace(ops, *y)) == {"expandable_segments": 60 * MIB}


def test_temporaries_of_the_update_are_what_a_fused_optimizer_saves():
    # GIVEN an update that needs as much again as the parameters
    w = Storage(id=0, nbytes=100 * MIB, kind=Kind.PARAM)
    ops = [_op("f", (20 * MIB, -1), (-20 * MIB, -1)),
           _op("step", (100 * MIB, -2), (-100 * MIB, -2), phase=Phase.STEP, reads=(0,))]  # fmt: skip
    # THEN the 20 MiB that the forward needs are left
    assert _names(_trace(ops, w, pinned=[0]))["fused_optimizer"] == 100 * MIB


def test_a_step_may_go_on_after_an_update():
    # GIVEN two updates in one step, and a temporary of the same number between them
    w = Storage(id=0, nbytes=100 * MIB, kind=Kind.PARAM)
    update = _op("step", (100 * MIB, -1), (-100 * MIB, -1), phase=Phase.STEP, reads=(0,))
    forward = _op("f", (20 * MIB, -1), (-20 * MIB, -1))
    # THEN what lies between is left
    assert _names(_trace([update, forward, forward, update], w, pinned=[0]))["fused_optimizer"] == 80 * MIB


def test_gradients_that_live_through_the_forward_are_told():
    # GIVEN a gradient that is never freed, and a forward that needs as much
    g = Storage(id=0, nbytes=100 * MIB, kind=Kind.GRAD)
    ops = [_op("f", (100 * MIB, -1), (-100 * MIB, -1)), _op("b", phase=Phase.BACKWARD, writes=(0,)),
           _op("s", phase=Phase.STEP, reads=(0,))]  # fmt: skip
    # THEN
    assert _names(_trace(ops, g, pinned=[0], setup=[(100 * MIB, 0)]))["free_gradients"] == 100 * MIB


def test_logits_and_their_copies_are_told():
    # GIVEN logits of a vocabulary and a copy, on top of other activations
    logits = [
        Storage(id=i, nbytes=400 * MIB, kind=Kind.ACTIVATION, shape=(2048, 51200), dtype="float32") for i in range(2)
    ]
    ops = [_op("head", (400 * MIB, 0)), _op("softmax", (400 * MIB, 1)), _op("b", (-400 * MIB, 0), (-400 * MIB, 1))]
    trace = _trace(ops, *logits)
    # THEN in eight chunks they take an eighth
    assert _names(trace)["chunked_loss"] == replay_trace(trace).peak_reserved_bytes - 100 * MIB


def test_what_is_held_after_its_last_use_is_told_with_its_maker():
    # GIVEN an output that the loop keeps until the next operator has run
    y = Storage(id=0, nbytes=200 * MIB, kind=Kind.ACTIVATION, module=("head",))
    ops = [_op("f", (200 * MIB, 0), writes=(0,)), _op("g", (200 * MIB, -1), (-200 * MIB, -1), (-200 * MIB, 0))]
    (advice,) = advise(_trace(ops, y))
    assert (advice.name, advice.saves_bytes) == ("late_frees", 200 * MIB)
    assert "made in head" in advice.text
