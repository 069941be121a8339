"""What a pipeline's rank has alive at most: the sum over its step, of which equal micro-batches are written out once.

    F0 F1 F2 B0 F3 B1 ...      F2 does what F1 did, where it finds the same: its bytes come and go as those did

What a pass of a chunk finds, and what it leaves, are names of storages (`rank_step`); a pass that finds the same names
as an earlier one of the same chunk, or of another one that is the same trace, adds the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from dnnmem.estimator.coarsen import rounded
from dnnmem.estimator.rank_step import writer_of
from dnnmem.estimator.rank_writer import Writer
from dnnmem.estimator.schedules.grid import Step
from dnnmem.estimator.send_waits import held_by_its_send
from dnnmem.estimator.trace import Kind, Op, Trace


def rank_peak(
    chunks: Sequence[Trace],
    steps: Sequence[Step],
    copies: int = 0,
    places: int = 1,
    *,
    folded: bool = False,
    kinds: frozenset[Kind] = frozenset(Kind),
) -> int:
    """`live_peak` of these `kinds` in the trace that `rank_step` makes of the same; backward passes are whole ones."""
    writer = writer_of(chunks, copies, places, folded=folded)
    count = _Count(writer, kinds)
    ends = {step.chunk: n for n, step in enumerate(steps)}
    alone, until, output = held_by_its_send(chunks, steps, places) or (-1, -1, frozenset[int]())
    for n, (step, ahead) in enumerate(zip(steps, writer.ahead(steps, ()), strict=True)):
        count.add(writer.fetched(*ahead, step.chunk))
        if step.microbatch == alone:
            count.add(writer.ops(step), {own for i, own in writer.own.get((0, alone), {}).items() if i in output})
        else:
            count.step(step)
        if (step.phase, step.microbatch) == ("B", until):
            count.let_go()
        count.add(writer.reductions(n, ends))
    count.add(writer.update())
    return count.peak


class _Pass(NamedTuple):
    """What a pass did."""

    grown: int
    """Bytes alive behind it, less those before it."""
    most: int
    """The same at its peak."""
    made: dict[int, int]
    """Ids of its micro-batch's storages, by their names."""
    left: list[dict[object, int]]
    """Ids of what its chunk has besides, as `_Count.tables` has them."""
    alive: set[int]
    """Of what is pinned, and comes and goes."""


class _Count:
    """Bytes of some kinds that are alive, and their peak so far, as a writer's ops come and go."""

    def __init__(self, writer: Writer, kinds: frozenset[Kind]) -> None:
        self.writer, self.kinds = writer, kinds
        self.live = sum(rounded(s.nbytes) for i in writer.pinned if (s := writer.storages[i]).kind in kinds)
        self.peak = self.live
        self.held = 0
        """Bytes that linger."""
        self.tables: list[dict[tuple[int, Any], int]] = [writer.lives, writer.sums, writer.latest, writer.grads]
        """Ids of what a chunk has beside its micro-batches' storages, by chunk and name."""
        roles = [(id(chunk), *some) for chunk, *some in zip(writer.chunks, writer.given, writer.handed, strict=True)]
        self.roles = [roles.index(role) for role in roles]
        """By chunk: the first one that does the same."""
        self.toggled = [
            {e.storage for ops in passes.values() for op in ops for e in op.events} & kept.keys()
            for passes, kept in zip(writer.by_letter, writer.kept, strict=True)
        ]
        """By chunk: what is pinned, and may come and go."""
        self.known: dict[tuple[object, ...], _Pass] = {}
        """By what passes find."""

    def add(self, ops: Iterable[Op], lingering: Collection[int] = ()) -> None:
        """Let the events of `ops` come and go; frees of what is `lingering` wait for `let_go`."""
        storages, kinds, temporaries = self.writer.storages, self.kinds, Kind.TEMP in self.kinds
        live, peak = self.live, self.peak
        for op in ops:
            for nbytes, _, i in op.events:
                if not (storages[i].kind in kinds if i >= 0 else temporaries):
                    continue
                size = rounded(abs(nbytes))
                if nbytes > 0:
                    live += size
                    peak = max(peak, live)
                elif i in lingering:
                    self.held += size
                else:
                    live -= size
        self.live, self.peak = live, peak

    def let_go(self) -> None:
        """Free what lingers."""
        self.live -= self.held
        self.held = 0

    def step(self, step: Step) -> None:
        """A pass of a chunk, whose ops are made only where no other pass has found the same."""
        writer, c = self.writer, step.chunk
        own, alive = writer.own.setdefault((c, step.microbatch), {}), self._alive(c)
        tables = [{name for chunk, name in table if chunk == c} for table in self.tables]
        key = (self.roles[c], step.phase, *map(frozenset, (own, alive, *tables)))
        known = self.known.get(key)
        if known is not None and not writer.same:  # what chunks lend each other is in no table
            self.peak, self.live = max(self.peak, self.live + known.most), self.live + known.grown
            self._leave(step, known)
            return
        before, highest = self.live, self.peak
        self.peak = before
        self.add(writer.ops(step))
        left = [{name: i for (chunk, name), i in table.items() if chunk == c} for table in self.tables]
        self.known[key] = _Pass(self.live - before, self.peak - before, dict(own), left, self._alive(c))
        self.peak = max(highest, self.peak)

    def _alive(self, c: int) -> set[int]:
        return {i for i in self.toggled[c] if self.writer.kept[c][i] in self.writer.alive}

    def _leave(self, step: Step, known: _Pass) -> None:
        """What that pass left, under its names: its ids stand for storages that are as large."""
        writer, c = self.writer, step.chunk
        own = writer.own[c, step.microbatch]
        new = {i: known.made[i] for i in known.made.keys() - own.keys()}
        own |= new
        for i in writer.stays[c] & new.keys():
            writer.sent.setdefault((c, i), []).append(new[i])
        for table, left in zip(self.tables, known.left, strict=True):
            for gone in [name for chunk, name in table if chunk == c and name not in left]:
                del table[c, gone]
            for name, i in left.items():
                table.setdefault((c, name), i)
        kept = writer.kept[c]
        writer.alive.difference_update(kept[i] for i in self.toggled[c] - known.alive)
        writer.alive.update(kept[i] for i in known.alive)
