"""A step, or one of its blocks, as a directed graph: which work makes which values out of which, in seconds and bytes.

    x -> norm -> a -> product -> b -> gelu -> c -> ...     forward works, in order
                 a             b        c
                 '-- product' -'- gelu' '                  backward works read what the forward pass made, and others'

Checkmate, Kusumoto, Feng and Huang, DTR and cuts plan over it. A value is a storage as one op left it: an op in place
reads the old version and makes a new one in its room. What lies outside of the graph is there at any time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from dnnmem.estimator.passes.draft import back_uses, lives
from dnnmem.estimator.passes.remat_ops import keepable, numbered
from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.trace import Op, Phase, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """An op, or several as one."""

    name: str
    """`addmm`; in a block's graph as rules of `Remat.keep` have it."""
    number: int = 0
    """Which of that name it is."""
    reads: tuple[int, ...]
    """Values that have to be there."""
    makes: tuple[int, ...]
    """Values that are there afterwards."""
    seconds: float
    """Its time."""
    extra_bytes: int = 0
    """Above all that lives beside it and what it makes; negative for work in place."""
    backward: bool = False
    """True if it is done once, after all forward works."""
    keeps: bool = True
    """False if what it makes cannot outlast the forward pass: others change it."""
    ends: tuple[int, ...] = ()
    """Values that are no more when it is done: it changes them in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Works in an order in which they can be done; two may make the same value, then either will do."""

    works: tuple[Work, ...]
    """Forward works, then backward works."""
    nbytes: tuple[int, ...]
    """Of each value; 0 for what the world outside keeps in any case."""
    stays: frozenset[int] = field(default_factory=frozenset)
    """Values that live on when all is done: gradients of parameters."""
    goals: tuple[int, ...] = ()
    """Works by which Checkmate counts its stages, in order; empty = all."""

    @property
    def turn(self) -> int:
        """Index of the first backward work."""
        return next((k for k, work in enumerate(self.works) if work.backward), len(self.works))

    def makers(self) -> list[list[int]]:
        """Of each value the works that make it."""
        found: list[list[int]] = [[] for _ in self.nbytes]
        for k, work in enumerate(self.works):
            for v in work.makes:
                found[v].append(k)
        return found

    def readers(self) -> list[list[int]]:
        """Of each value the works that read it."""
        found: list[list[int]] = [[] for _ in self.nbytes]
        for k, work in enumerate(self.works):
            for v in set(work.reads):
                found[v].append(k)
        return found

    def needed(self) -> frozenset[int]:
        """Values of the forward pass that backward works read."""
        made = {v for work in self.works[: self.turn] for v in work.makes}
        return frozenset(v for work in self.works[self.turn :] for v in work.reads if v in made)


def graph_of(trace: Trace, seconds: Sequence[float], inside: Collection[int] | None = None) -> Graph:
    """The graph of the ops `inside`, None for all of the forward and backward pass, each taking its `seconds`."""
    known = lives(trace.ops)
    backward = {k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD}
    ks = [k for k, op in enumerate(trace.ops) if op.phase is not Phase.STEP and (inside is None or k in inside)]
    mine, last = set(ks), max(ks, default=-1)
    forward = [k for k in ks if k not in backward]
    names, keeps = numbered(trace, forward), keepable(trace, forward)
    waits: dict[int, list[int]] = {}  # op -> what only waited for it to let go
    for i, life in known.items():
        if life.made in mine and life.made not in backward:
            for k in back_uses(trace.storages[i], life, backward):
                waits.setdefault(k, []).append(i)
    now: dict[int, int] = {}
    nbytes: list[int] = []
    works: list[Work] = []
    stays: set[int] = set()
    for k in ks:
        op = trace.ops[k]
        reads = tuple(dict.fromkeys(now[i] for i in (*op.reads, *op.writes, *waits.get(k, ())) if i in now))
        made = [i for i in dict.fromkeys(op.writes) if i in now or known[i].made == k]
        ends = tuple(now[i] for i in made if i in now)
        for i in made:
            now[i] = len(nbytes)
            out = _leaves(known[i].uses, mine, backward) and k not in backward
            nbytes.append(0 if out else trace.storages[i].nbytes)
            if k in backward and (known[i].freed < 0 or known[i].freed > last):
                stays.add(now[i])
        name, number = names.get(k, (op.name, 0))
        works.append(
            Work(
                name=name, number=number, reads=reads, makes=tuple(now[i] for i in made), seconds=seconds[k],
                extra_bytes=_extra(op) - sum(nbytes[v] for v in ends), backward=k in backward, keeps=k in keeps,
                ends=ends,
            )
        )  # fmt: skip
    return Graph(works=tuple(works), nbytes=tuple(nbytes), stays=frozenset(stays))


def _leaves(uses: Sequence[int], mine: Collection[int], backward: Collection[int]) -> bool:
    """True for what forward ops outside of the graph read."""
    return any(k not in mine and k not in backward for k in uses)


def _extra(op: Op) -> int:
    """Most bytes that an op holds beyond what it leaves."""
    live = peak = made = 0
    for event in op.events:
        if event.storage < 0 or event.nbytes > 0:
            live += event.nbytes
            peak = max(peak, live)
        if event.storage >= 0 and event.nbytes > 0:
            made += event.nbytes
    return max(0, peak - made)


def graph_of_chain(chain: Chain) -> Graph:
    """A chain's stages: each is run to keep its output (`light`), what its backward pass needs (`again`), or both."""
    stages, count = chain.stages, len(chain.stages)
    # values: outputs of all stages but the last, then what each saves besides, its gradient, and what it leaves
    outs = [range(s, s + 1) if s < count - 1 else range(0) for s in range(count)]
    tape, gradient, left = (range(start, start + count) for start in (count - 1, 2 * count - 1, 3 * count - 1))
    sizes = [stage.input_bytes for stage in stages[1:]]
    nbytes = (
        *sizes,
        *(stage.saved_bytes - sum(sizes[v] for v in outs[s]) for s, stage in enumerate(stages)),
        *(stage.gradient_bytes if s < count - 1 else 0 for s, stage in enumerate(stages)),
        *(stage.left_bytes for stage in stages),
    )
    works: list[Work] = []
    goals: list[int] = []
    for s, stage in enumerate(stages):
        ways: list[tuple[str, tuple[int, ...], int, float]]
        ways = [("light", tuple(outs[s]), stage.light_bytes, 0.0), ("again", (tape[s],), stage.forward_bytes, 1.0)]
        ways = [*(ways if outs[s] else ()), ("whole", (*outs[s], tape[s]), stage.forward_bytes, 0.0)]
        for name, makes, peak, spared in ways:
            works.append(
                Work(
                    name=name, number=s, reads=tuple(outs[s - 1]) if s else (), makes=makes,
                    seconds=stage.forward_seconds - spared * stage.spared_seconds,
                    extra_bytes=peak - sum(nbytes[v] for v in makes),
                )
            )  # fmt: skip
        goals.append(len(works) - 1)
    for s in reversed(range(count)):
        reads = (tape[s], *(outs[s - 1] if s else ()), *((gradient[s],) if s < count - 1 else ()))
        makes = (left[s], *((gradient[s - 1],) if s else ()))
        besides = sum(nbytes[v] for v in (*reads, *makes) if v >= count - 1)  # all but the input
        works.append(
            Work(
                name="backward", number=s, reads=reads, makes=makes, seconds=stages[s].backward_seconds,
                extra_bytes=stages[s].backward_bytes - besides, backward=True,
            )
        )  # fmt: skip
        goals.append(len(works) - 1)
    return Graph(works=tuple(works), nbytes=nbytes, stays=frozenset(left), goals=tuple(goals))
