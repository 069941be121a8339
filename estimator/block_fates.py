"""What becomes of each block's activations under a plan: kept, computed again, sent to the host; read off the trace.

    plain     forward [0]  saves a b c            backward [0]' reads a b c
    planned   forward [0]  saves a                backward again: b c, [0]'       kept a; saved a b c; again f seconds

Passes give what they make new ids, above all those of the step that they rewrite. So an op of the backward pass that
writes nothing but new storages computes something again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnmem.estimator.block_list import Path, block_lists, blocks_of_ops
from dnnmem.estimator.passes.draft import lives
from dnnmem.estimator.segments import parse_segments
from dnnmem.estimator.trace import Lane, Op, Phase, Trace

_NEAR = 0.1
"""Blocks of a group agree in their shares to this."""
_MANY, _LONGEST = 20, 6
"""With more groups than this, patterns of up to so many groups are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """Of one block."""

    block: int
    """Its number over the model."""
    path: Path
    """Where it is in the model."""
    saved_bytes: int
    """What its forward pass leaves for its backward pass in the plain step."""
    kept_bytes: int
    """What stays on the GPU until then under the plan."""
    host_bytes: int
    """What is copied to the host meanwhile."""
    forward_seconds: float
    """Of its forward pass."""
    again_seconds: float
    """Of what is computed again, over all its repetitions."""


Unit = list[Fate]
"""A run that is computed again as one, or one block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Neighbours of one list that are treated alike."""

    fates: tuple[Fate, ...]
    """Of its blocks, in order."""
    run: int
    """Blocks that are computed again as one; 1 = each by itself, or none is."""

    @property
    def path(self) -> str:
        """Its blocks: `h.0-5`."""
        first, last = self.fates[0].path, self.fates[-1].path
        return ".".join(first) + (f"-{last[-1]}" if first != last else "")

    def share(self, name: str) -> float:
        """Of what its blocks save in the plain step, `kept_bytes` or `host_bytes`."""
        saved = sum(fate.saved_bytes for fate in self.fates)
        found: int = sum(getattr(fate, name) for fate in self.fates)
        return found / saved if saved else 0.0

    @property
    def again(self) -> float:
        """How often its forward pass is computed again."""
        forward = sum(fate.forward_seconds for fate in self.fates)
        return sum(fate.again_seconds for fate in self.fates) / forward if forward else 0.0


def owners(trace: Trace, ops: Sequence[Op]) -> list[int | None]:
    """The block of each of `ops`, counted over the model of `trace`."""
    found: list[int | None] = [None] * len(ops)
    count = 0
    for some in block_lists(trace):
        for k, owner in enumerate(blocks_of_ops(ops, some)):
            if owner is not None:
                found[k] = count + owner
        count += some.count
    return found


def is_again(op: Op, first_new: int) -> bool:
    """Whether `op` of a planned step computes again what the forward pass made; `first_new` is the first new id."""
    return (
        op.phase is Phase.BACKWARD
        and op.lane is Lane.COMPUTE
        and bool(op.writes)
        and min(op.writes) >= first_new
        and not op.name.startswith("dnnmem.")
    )


def first_new(plain: Trace) -> int:
    """The first id that a pass over `plain` gives."""
    return max(plain.storages, default=-1) + 1


def fates(plain: Trace, planned: Trace, seconds: Sequence[float]) -> tuple[Fate, ...]:
    """Of each block of `plain`, once that is rewritten to `planned`, whose ops take `seconds`; none without blocks."""
    paths = [some.path(k) for some in block_lists(plain) for k in range(some.count)]
    saved, kept = _waiting(plain, len(paths)), _waiting(planned, len(paths))
    host, forward, again = [0] * len(paths), [0.0] * len(paths), [0.0] * len(paths)
    new = first_new(plain)
    for op, owner, value in zip(planned.ops, owners(plain, planned.ops), seconds, strict=True):
        if owner is None:
            continue
        if op.lane is Lane.TO_HOST and op.phase is Phase.FORWARD:
            host[owner] += op.moved_bytes
        elif op.phase is Phase.FORWARD and op.lane is Lane.COMPUTE:
            forward[owner] += value
        elif is_again(op, new):
            again[owner] += value
    return tuple(
        Fate(
            block=n, path=path, saved_bytes=saved[n], kept_bytes=kept[n], host_bytes=host[n],
            forward_seconds=forward[n], again_seconds=again[n],
        )
        for n, path in enumerate(paths)
    )  # fmt: skip


def groups(found: Sequence[Fate], segments: str = "", *, fold: bool = True) -> tuple[Group, ...]:
    """Blocks in groups: those of a run of `segments` (as `Remat.segments`), and neighbours that are treated alike.

    Where that leaves many groups, patterns that repeat are one. Without `fold` each run, and each block in none, is a
    group of its own.
    """
    named = parse_segments(segments) if segments else ()
    runs = {k: run for run in named for k in range(run.first, run.last + 1)}
    units: list[Unit] = []
    for fate in found:
        run = runs.get(fate.block)
        if run is not None and run.first < fate.block and units:
            units[-1].append(fate)
        else:
            units.append([fate])
    folded = [[unit] for unit in units]
    for period in range(1, _LONGEST + 1):
        if fold and (period == 1 or len(folded) > _MANY):
            folded = _folded(folded, period)
    return tuple(
        Group(fates=tuple(fate for unit in some for fate in unit), run=max(len(unit) for unit in some))
        for some in folded
    )


def _folded(some: list[list[Unit]], period: int) -> list[list[Unit]]:
    """Neighbours that repeat with this period become one."""
    found: list[list[Unit]] = []
    k = 0
    while k < len(some):
        end = k + period
        while end + period <= len(some) and all(map(_alike, some[end - period : end], some[end : end + period])):
            end += period
        if end > k + period:
            found.append([unit for group in some[k:end] for unit in group])
            k = end
        else:
            found.append(some[k])
            k += 1
    return found


def _alike(one: Sequence[Unit], other: Sequence[Unit]) -> bool:
    """Whether the last unit of the one and the first of the other are of one list and treated alike."""
    a, b = one[-1], other[0]
    same = a[0].path[:-1] == b[0].path[:-1] and len(a) == len(b)
    return same and all(
        abs(x - y) < _NEAR for m, n in zip(a, b, strict=True) for x, y in zip(_shares(m), _shares(n), strict=True)
    )


def _shares(fate: Fate) -> tuple[float, ...]:
    saved, forward = fate.saved_bytes or 1, fate.forward_seconds or 1.0
    return fate.kept_bytes / saved, fate.host_bytes / saved, fate.again_seconds / forward


def _waiting(trace: Trace, count: int) -> list[int]:
    """By block: bytes that its forward pass makes and the backward pass frees."""
    found = [0] * count
    owner_of = owners(trace, trace.ops)
    for i, life in lives(trace.ops).items():
        if life.made < 0 or life.freed < 0 or i in trace.pinned:
            continue
        owner = owner_of[life.made]
        made, freed = trace.ops[life.made].phase, trace.ops[life.freed].phase
        if owner is not None and made is Phase.FORWARD and freed is not Phase.FORWARD:
            found[owner] += trace.storages[i].nbytes
    return found
