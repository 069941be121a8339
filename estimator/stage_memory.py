"""What a rank of a pipeline holds: its step written out micro-batch by micro-batch in the schedule's order, and played.

    rank 1 of 3 under 1f1b     F0 F1 B0 F2 B1 F3 B2 B3 | step        F2 allocates anew what its backward frees
    its chunk, recorded once   F  B  step

Each micro-batch has storages of its own; parameters, gradients and states are there once. So peaks follow from the
same allocator as those of a plain step, and a rank's activations from its place in the schedule. Micro-batches
beyond those that fill the pipeline find the memory that earlier ones have left, and are not played.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dnnmem.estimator.collector import collector_paused
from dnnmem.estimator.device import Device
from dnnmem.estimator.passes.backward_parts import backward_parts
from dnnmem.estimator.pipeline_timing import in_flight
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.replay import ReplayResult, replay_on
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.estimator.schedules.grid import Grid, Step
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import storage_like

_BEYOND = 2
"""Micro-batches that are played after those that a rank holds at once."""
_CLOSE = 0.9
"""Share of the largest peak of requested bytes from which a rank may be the one that reserves most."""
_AS_1F1B = frozenset({"1f1b", "dapple", "pipedream", "2bw", "pipemare", "hetpipe", "zb_h1"})
"""Schedules whose ranks hold at most a micro-batch a stage."""
_TWICE, _UNITS = frozenset({"zbv", "dualpipe", "dualpipev"}), frozenset({"interleaved", "chimera"})
"""Those that hold as many chunks as there are in two, and those that come in units of a micro-batch a stage."""
_OF_A_CHUNK = frozenset({Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER, Kind.COMM})
"""Kinds that each chunk has for itself, even where chunks of a rank are one trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """The rank of a pipeline that holds most."""

    rank: int
    """Stage, from 0."""
    held: ReplayResult
    """What its allocator held."""


@collector_paused()
def worst_stage(chunks: Sequence[Trace], plan: Plan, device: Device) -> StageMemory:
    """The rank that reserves most of its `device`; `chunks` are those of one micro-batch, in the order of the model.

    Of the ranks between the first and the last, one of each size is played: the earliest, which holds the most
    micro-batches. A rank whose program asks for a tenth less than another's is not played: fragments of ranks that do
    the same are alike. Raises what the schedule raises.
    """
    grid = SCHEDULES[plan.pipeline.schedule](plan.mesh.pp, _microbatches(plan), plan.pipeline.chunks)
    steps = {r: stage_step(chunks, grid, r) for r in _candidates(chunks, grid)}
    asked = {r: step.peak_bytes() for r, step in steps.items()}
    enough = max(asked.values()) * _CLOSE
    found = [StageMemory(rank=r, held=replay_on(steps[r], device)) for r in steps if asked[r] >= enough]
    return max(found, key=lambda one: (one.held.peak_reserved_bytes, one.held.peak_allocated_bytes))


def _microbatches(plan: Plan) -> int:
    """How many show the peak of each rank: all of them, or those that fill the pipeline and a few more."""
    ranks, wanted, schedule = plan.mesh.pp, plan.batch.accumulation, plan.pipeline.schedule
    if schedule in _AS_1F1B:
        return min(wanted, ranks + _BEYOND)
    if schedule in _TWICE or (schedule in _UNITS and wanted > ranks):
        # a multiple of the ranks that is not the ranks, which have an order of their own
        return min(wanted, 2 * ranks + (_BEYOND if schedule in _TWICE else 0))
    return wanted


def _candidates(chunks: Sequence[Trace], grid: Grid) -> list[int]:
    """The first rank, the last, and of each size between them the one that holds most, the earliest of those."""
    last = len(grid.ranks) - 1
    sizes: dict[tuple[tuple[int, int], ...], int] = {}
    for r in sorted(range(1, last), key=lambda r: -in_flight(grid.ranks[r]) - grid.extra_copies(r)):
        sizes.setdefault(tuple((len(chunks[s].ops), chunks[s].pinned_bytes()) for s in grid.stages[r]), r)
    return sorted({0, *sizes.values(), last})


def stage_step(chunks: Sequence[Trace], grid: Grid, rank: int) -> Trace:
    """The step of a rank of `grid`, whose stages are `chunks`; what later micro-batches repeat is left out of 1F1B."""
    row = grid.ranks[rank]
    if len(grid.stages[rank]) == 1 and {step.phase for step in row} == {"F", "B"}:
        few = in_flight(row) + _BEYOND
        row = tuple(step for step in row if step.microbatch < few)
    return rank_step([chunks[s] for s in grid.stages[rank]], row, grid.extra_copies(rank))


def rank_step(chunks: Sequence[Trace], steps: Sequence[Step], copies: int = 0) -> Trace:
    """The step of a rank that holds `chunks`: an op for each of the schedule's `steps`, then the update.

    Its ops carry events and flops: it is made to be played, not to be timed. `copies` of the weights rest beside them.
    """
    writer = _Writer(chunks, copies)
    ops = [writer.op(step) for step in steps]
    ops += writer.update()
    setup = tuple(Event(writer.storages[i].nbytes, 0, i) for i in writer.early if writer.storages[i].nbytes)
    first = chunks[0]
    note = f"At most {in_flight(tuple(steps))} micro-batches of its chunks are held at once."
    origin = replace(first.origin, notes=(*first.origin.notes, note))
    return replace(
        first,
        ops=tuple(ops),
        storages=writer.storages,
        setup=setup,
        pinned=frozenset(writer.pinned),
        origin=origin,
    )


class _Writer:
    """Gives the storages of each chunk and micro-batch ids of their own."""

    def __init__(self, chunks: Sequence[Trace], copies: int) -> None:
        self.chunks, self.copies = chunks, copies
        self.storages: dict[int, Storage] = {}
        self.pinned: set[int] = set()
        self.early: list[int] = []
        self.alive: set[int] = set()
        self.kept = self._kept()
        self.own: dict[tuple[int, int], dict[int, int]] = {}
        self.late = [_freed_late(chunk) for chunk in chunks]
        self.latest: dict[tuple[int, int], int] = {}
        self.gathered = [_gathered(chunk) for chunk in chunks]
        self.holders: dict[tuple[int, int], tuple[int, int]] = {}
        self.ops = [_by_letter(chunk) for chunk in chunks]

    def _kept(self) -> list[dict[int, int]]:
        """For each chunk, ids of what is pinned; what two chunks of a rank share is there once."""
        seen: dict[int, tuple[Storage, int]] = {}
        found = []
        for chunk in self.chunks:
            new: dict[int, int] = {}
            order = dict.fromkeys(e.storage for e in chunk.setup if e.nbytes > 0 and e.storage in chunk.pinned)
            for i in (*order, *sorted(chunk.pinned - order.keys())):
                storage = chunk.storages[i]
                known = seen.get(i)
                if known is not None and known[0] == storage and storage.kind not in _OF_A_CHUNK:
                    new[i] = known[1]
                    continue
                new[i] = self._enter(storage)
                seen[i] = storage, new[i]
                self.pinned.add(new[i])
                if i in order:  # what the set-up leaves out is made by the first step
                    self.early.append(new[i])
                if storage.nbytes:
                    self.alive.add(new[i])
                for _ in range(self.copies if storage.kind is Kind.PARAM else 0):
                    self.early.append(copy := self._enter(storage))
                    self.pinned.add(copy)
            found.append(new)
        return found

    def _enter(self, storage: Storage) -> int:
        new = len(self.storages)
        self.storages[new] = storage_like(storage, id=new)
        return new

    def op(self, step: Step) -> Op:
        """One forward or backward of a chunk."""
        phase = Phase.FORWARD if step.phase == "F" else Phase.BACKWARD
        ops = self.ops[step.chunk].get(step.phase, ())
        events = self._renamed([event for op in ops for event in op.events], step.chunk, step.microbatch)
        name = f"dnnmem.{phase.value}.{step.microbatch}"
        return Op(name=name, phase=phase, events=tuple(events), flops=sum(op.flops for op in ops))

    def update(self) -> Iterator[Op]:
        """The optimizer's step: one over the parameters of all chunks, where their ops are alike."""
        lists = [[op for op in chunk.ops if op.phase is Phase.STEP] for chunk in self.chunks]
        if any([op.name for op in ops] != [op.name for op in lists[0]] for ops in lists):
            turns = [(c, op) for c, ops in enumerate(lists) for op in ops]
        else:
            turns = [(c, op) for row in zip(*lists, strict=True) for c, op in enumerate(row)]
        for c, op in turns:
            yield Op(name=op.name, module=op.module, phase=op.phase, events=tuple(self._renamed(op.events, c, -1)))

    def _renamed(self, events: Sequence[Event], chunk: int, microbatch: int) -> Iterator[Event]:
        """Events with the ids of a micro-batch; one that would free or allocate a pinned storage twice is left out."""
        kept, late, storages = self.kept[chunk], self.late[chunk], self.chunks[chunk].storages
        gathered = self.gathered[chunk]
        own = self.own.setdefault((chunk, microbatch), {})
        for event in events:
            nbytes, stream, i = event
            if i < 0:
                yield event
            elif i in late:
                yield from self._replaced(event, chunk)
            elif i in gathered:
                yield from self._held(event, chunk)
            elif (new := kept.get(i)) is None:
                if (new := own.get(i)) is None:
                    new = own[i] = self._enter(storages[i])
                yield Event(nbytes, stream, new)
            elif (new in self.alive) != (nbytes > 0):
                (self.alive.add if nbytes > 0 else self.alive.discard)(new)
                yield Event(nbytes, stream, new)

    def _held(self, event: Event, chunk: int) -> Iterator[Event]:
        """A gathered parameter is there once while any micro-batch in flight holds it."""
        nbytes, stream, i = event
        new, holders = self.holders.get((chunk, i), (-1, 0))
        if nbytes > 0 and not holders:
            new = self._enter(self.chunks[chunk].storages[i])
        now = holders + (1 if nbytes > 0 else -1)
        self.holders[chunk, i] = new, now
        if not holders or not now:
            yield Event(nbytes, stream, new)

    def _replaced(self, event: Event, chunk: int) -> Iterator[Event]:
        """What the program holds until the update, such as the loss: a micro-batch's replaces the one before."""
        nbytes, stream, i = event
        before = self.latest.pop((chunk, i), None)
        if nbytes > 0:
            new = self.latest[chunk, i] = self._enter(self.chunks[chunk].storages[i])
            yield Event(nbytes, stream, new)
        if before is not None:
            yield Event(-abs(nbytes), stream, before)


def _freed_late(chunk: Trace) -> set[int]:
    """Storages of a micro-batch that are freed in the update."""
    made = {e.storage for op in chunk.ops if op.phase is not Phase.STEP for e in op.events if e.nbytes > 0}
    freed = {e.storage for op in chunk.ops if op.phase is Phase.STEP for e in op.events if e.nbytes < 0}
    return {i for i in made & freed if i >= 0 and i not in chunk.pinned}


def _gathered(chunk: Trace) -> set[int]:
    """Whole parameters that a micro-batch's forward pass leaves for its backward pass."""
    params = {(s.module, s.name) for s in chunk.storages.values() if s.kind is Kind.PARAM}
    made = {e.storage for op in chunk.ops if op.phase is Phase.FORWARD for e in op.events if e.nbytes > 0}
    freed = {e.storage for op in chunk.ops if op.phase is Phase.BACKWARD for e in op.events if e.nbytes < 0}
    crossing = [chunk.storages[i] for i in made & freed if i >= 0 and i not in chunk.pinned]
    return {s.id for s in crossing if s.kind is Kind.COMM and (s.module, s.name) in params}


def _by_letter(chunk: Trace) -> dict[str, list[Op]]:
    """Ops of each kind of step; a forward that is run again is part of its backward, which follows at once."""
    forward = [op for op in chunk.ops if op.phase is Phase.FORWARD]
    backward = [op for op in chunk.ops if op.phase is Phase.BACKWARD]
    inputs, weights = backward_parts(chunk)
    return {"F": forward, "B": backward, "I": inputs, "W": weights}
