"""Traces for tests: one training step made by hand, with numbers that a reader can add up, and random valid ones.

`step_trace(n)`: one linear layer and a ReLU on a batch of n, with momentum.

    op               events                       bytes alive after them          n = 1    n = 8
    (start)          weight, momentum, x          128 + 16n                         144      256
    mm         fc    +y 8n, +32, -32              128 + 24n (+ 32 within)       152,184  320,352
    relu       act   +z 8n                        128 + 32n                         160      384
    mean    <loss>   +loss 4                      132 + 32n                         164      388
    backward   act   +g 8n, -loss, -z             132 + 40n, then 128 + 32n         172      452   <- peak of n = 8
    mm'        fc    +dw 64, -g, -y               192 + 32n, then 192 + 16n         224      448
    add   <optimizer>  +64, -64, -dw              256 + 16n, then 128 + 16n         272      384   <- peak of n = 1
"""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import strategies as st

from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Event, Kind, Lane, Module, Op, Origin, Phase, Storage, Trace

LOSS, OPTIMIZER = ("<loss>",), ("<optimizer>",)


def step_trace(n: int = 1, *, seconds: bool = True) -> Trace:
    """The step drawn above."""
    f4 = "float32"
    fc, act = ("fc",), ("act",)
    storages = (
        Storage(id=0, nbytes=64, kind=Kind.PARAM, shape=(4, 4), dtype=f4, module=fc, name="weight"),
        Storage(id=1, nbytes=64, kind=Kind.OPTIMIZER, shape=(4, 4), dtype=f4, module=fc, name="weight.momentum_buffer"),
        Storage(id=2, nbytes=16 * n, kind=Kind.INPUT, shape=(n, 4), dtype=f4),
        Storage(id=3, nbytes=8 * n, kind=Kind.ACTIVATION, shape=(n, 2), dtype=f4, module=fc, saved=True),
        Storage(id=4, nbytes=8 * n, kind=Kind.ACTIVATION, shape=(n, 2), dtype=f4, module=act, saved=True),
        Storage(id=5, nbytes=4, kind=Kind.TEMP, dtype=f4, module=LOSS),
        Storage(id=6, nbytes=8 * n, kind=Kind.TEMP, shape=(n, 2), dtype=f4, module=act),
        Storage(id=7, nbytes=64, kind=Kind.GRAD, shape=(4, 4), dtype=f4, module=fc, name="weight"),
    )

    def op(
        name: str, module: tuple[str, ...], phase: Phase, reads: Any, writes: Any, events: Any, flops: int = 0
    ) -> Op:
        return Op(
            name=name,
            module=module,
            phase=phase,
            reads=reads,
            writes=writes,
            events=tuple(Event(nbytes, 0, i) for nbytes, i in events),
            flops=flops,
            moved_bytes=100 + 10 * n,
            seconds=0.001 + 0.002 * n if seconds else None,
            source="model.py:7",
        )

    forward, backward = Phase.FORWARD, Phase.BACKWARD
    return Trace(
        ops=(
            op("mm", fc, forward, (0, 2), (3,), [(8 * n, 3), (32, -1), (-32, -1)], 64 * n),
            op("relu", act, forward, (3,), (4,), [(8 * n, 4)]),
            op("mean", LOSS, forward, (4,), (5,), [(4, 5)]),
            op("relu_backward", act, backward, (4,), (6,), [(8 * n, 6), (-4, 5), (-8 * n, 4)]),
            op("mm", fc, backward, (2, 6), (7,), [(64, 7), (-8 * n, 6), (-8 * n, 3)], 64 * n),
            op("add", OPTIMIZER, Phase.STEP, (0, 1, 7), (0, 1), [(64, -1), (-64, -1), (-64, 7)]),
        ),
        storages={s.id: s for s in storages},
        setup=tuple(Event(storages[i].nbytes, 0, i) for i in (0, 1, 2)),
        pinned=frozenset({0, 1, 2}),
        modules=(
            Module(path=(), type="Net", source="model.py:1"),
            Module(path=fc, type="Linear"),
            Module(path=act, type="ReLU"),
            Module(path=("idle",), type="Identity"),
        ),
        batch={"batch_size": n},
        origin=Origin(target="model.py", device="cpu", versions={"torch": "2.9.0"}, notes=("Made by hand.",)),
    )


PATHS = ((), ("fc",), ("h", "0", "attn"), ("h", "1", "attn"), ("h", "1"), LOSS, OPTIMIZER)
OWNERS = (Kind.PARAM, Kind.OPTIMIZER, Kind.BUFFER, Kind.INPUT, Kind.GRAD, Kind.TEMP)
_TEXT = st.text(max_size=5)


@st.composite
def traces(draw: st.DrawFn, *, max_ops: int = 8) -> Trace:
    """Any trace that `check` accepts: all kinds, empty storages, temporaries, pinned blocks freed and made again.

    The number of ops shrinks; what is in them comes from a seed, which is a hundred times quicker than drawing it.
    """
    count = draw(st.integers(1, max_ops))
    dice = Random(draw(st.integers(0, 2**32)))  # noqa: S311  # no secret comes from it
    storages = {i: _storage(dice, i, OWNERS) for i in range(dice.randint(0, 4))}
    pinned = frozenset(storages)
    setup = tuple(Event(s.nbytes, 0, i) for i, s in storages.items() if s.nbytes)
    live = set(pinned)
    phases = sorted(dice.choices(tuple(Phase), k=count), key=list(Phase).index)
    ops = tuple(_op(dice, phase, storages, live, pinned, last=k == count - 1) for k, phase in enumerate(phases))
    return Trace(
        ops=ops,
        storages=storages,
        setup=setup,
        pinned=pinned,
        modules=tuple(Module(path=path, type="Block", source="m.py:1") for path in dice.sample(PATHS[:5], 5)),
        batch=draw(st.dictionaries(_TEXT, st.integers(0, 2**40) | _TEXT, max_size=2)),
        origin=Origin(target=draw(_TEXT), gpu=dice.choice((None, "h100")), versions={"torch": "2.9.0"}),
    )


def _storage(dice: Random, i: int, kinds: tuple[Kind, ...]) -> Storage:
    return Storage(
        id=i,
        nbytes=dice.choice((0, 1, 8, dice.randint(1, 2**22))),
        kind=dice.choice(kinds),
        shape=tuple(dice.randint(0, 9) for _ in range(dice.randint(0, 3))),
        dtype=dice.choice(("float32", "bfloat16", "")),
        module=dice.choice(PATHS),
        name=dice.choice(("", "weight", "workspace", "größe")),
        saved=dice.random() < 0.5,
    )


def _op(
    dice: Random, phase: Phase, storages: dict[int, Storage], live: set[int], pinned: frozenset[int], *, last: bool
) -> Op:
    """One op: what dies, what is made, and a fair order of the allocator's events; changes `live` and `storages`."""

    def some() -> list[int]:
        return [i for i in sorted(live) if dice.random() < 0.3]

    reads, doomed = some(), sorted(live - pinned) if last else some()
    chains = [[Event(-storages[i].nbytes, 0, i)] for i in doomed if storages[i].nbytes]
    made = range(len(storages), len(storages) + dice.randint(0, 2))
    for i in made:
        storages[i] = _storage(dice, i, tuple(Kind))
        nbytes = storages[i].nbytes
        chain = [Event(nbytes, 0, i), Event(-nbytes, 0, i)]
        chains += [chain if last or dice.random() < 0.3 else chain[:1]] if nbytes else []
    if last:
        chains += [[Event(storages[i].nbytes, 0, i)] for i in sorted(pinned - live) if storages[i].nbytes]
    for k in range(dice.randint(0, 2)):
        nbytes = dice.randint(1, 2**22)
        chains.append([Event(nbytes, 1, -1 - k), Event(-nbytes, 1, -1 - k)])
    events = _interleave(dice, chains)
    for event in events:
        (live.add if event.nbytes > 0 else live.discard)(event.storage)
    return Op(
        name=dice.choice(("aten.mm", "aten.add", "aten.sum")),
        module=dice.choice(PATHS),
        phase=phase,
        lane=dice.choice(tuple(Lane)),
        reads=tuple(reads),
        writes=tuple(made),
        events=events,
        flops=dice.randint(0, 2**60),
        moved_bytes=dice.randint(0, 2**40),
        workspace_bytes=dice.randint(0, 2**30),
        seconds=dice.choice((None, 0.0, dice.random())),
        source=dice.choice(("", "m.py:3")),
    )


def _interleave(dice: Random, chains: list[list[Event]]) -> tuple[Event, ...]:
    """All events, in an order that keeps each chain's own."""
    labels = [k for k, chain in enumerate(chains) for _ in chain]
    dice.shuffle(labels)
    rest = [iter(chain) for chain in chains]
    return tuple(next(rest[k]) for k in labels)


_BYTES = st.none() | st.integers(0, 2**40)
measurements = st.builds(
    Measurement,
    allocated_bytes=_BYTES,
    reserved_bytes=_BYTES,
    step_seconds=st.none() | st.floats(0, 100),
    context_bytes=_BYTES,
    facts=st.dictionaries(
        st.text(max_size=5),
        st.integers(-(2**40), 2**40) | st.floats(-1e9, 1e9) | st.text(max_size=5),
        max_size=2,
    ),
    growth_bytes=st.integers(-(2**40), 2**40),
)
"""Any measurement, also one that contradicts its trace."""
