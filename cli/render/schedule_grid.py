"""A planned step in columns of time: how long each block works in each, how, and what it holds and has on the host.

    ops, their times, blocks in groups  ->  work[row, kind, column] (seconds), held[row, column], memory[column] (bytes)

Rows are what runs before the blocks, the groups of blocks, all else of the model, and the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.block_fates import Group, first_new, is_again, owners
from dnnmem.estimator.simulate import Timing
from dnnmem.estimator.trace import Kind, Lane, Op, Phase, Trace

KINDS = ("forward", "again", "backward", "update", "to_host", "to_device")
"""What a row can be seen doing."""
_LANES = {Lane.TO_HOST: 4, Lane.TO_DEVICE: 5}
_FORWARD, _AGAIN, _BACKWARD, _UPDATE = range(4)
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """A step to be drawn."""

    plain: Trace
    """As it is without the plan."""
    planned: Trace
    """Rewritten by it."""
    timing: Timing
    """Of the ops of `planned`."""
    groups: tuple[Group, ...]
    """Its blocks; each group is a row."""


@dataclass(slots=True, kw_only=True, eq=False)
class Grid:
    """The numbers of a picture."""

    names: list[str]
    """Of the rows."""
    saved_bytes: list[int]
    """What each row holds at most, in the plain step; 0 where that does not matter."""
    seconds: float
    """Of all columns together."""
    work: Array
    """Seconds by row, kind (`KINDS`) and column."""
    held: Array
    """Bytes on the GPU by row and column, at the column's middle."""
    away: Array
    """The same on the host."""
    memory: Array
    """Most bytes alive in each column, of all that is."""
    starts: dict[Phase, float] = field(default_factory=dict)
    """When each phase begins."""


def grid(step: Step, columns: int) -> Grid:
    """The step in so many columns."""
    names = ["before", *(group.path for group in step.groups), "other", "update"]
    saved = [0, *(sum(fate.saved_bytes for fate in group.fates) for group in step.groups), 0, 0]
    shape = (len(names), columns)
    found = Grid(
        names=names, saved_bytes=saved, seconds=step.timing.seconds or 1.0, held=np.zeros(shape), away=np.zeros(shape),
        work=np.zeros((shape[0], len(KINDS), columns)), memory=np.zeros(columns),
    )  # fmt: skip
    new, rows = first_new(step.plain), _rows(step)
    for op, row, begin, end in zip(step.planned.ops, rows, step.timing.start, step.timing.end, strict=True):
        if op.lane is Lane.COMPUTE:
            found.starts.setdefault(op.phase, float(begin))
        if (kind := _kind(op, new)) is not None:
            _add(found.work[row, kind], float(begin) / found.seconds, float(end) / found.seconds, found.seconds)
    _hold(found, step, rows, new)
    return found


def _rows(step: Step) -> list[int]:
    """The row of each op."""
    row_of = {fate.block: 1 + n for n, group in enumerate(step.groups) for fate in group.fates}
    ops = step.planned.ops
    blocks = owners(step.plain, ops)
    inside = [k for k, block in enumerate(blocks) if block is not None]
    first, last = (inside[0], inside[-1]) if inside else (len(ops), -1)
    other, update = len(step.groups) + 1, len(step.groups) + 2
    found = []
    for k, (op, block) in enumerate(zip(ops, blocks, strict=True)):
        if op.phase is Phase.STEP:
            found.append(update)
        elif block is not None:
            found.append(row_of[block])
        else:
            found.append(0 if k < first or (op.phase is Phase.BACKWARD and k > last >= 0) else other)
    return found


def _kind(op: Op, new: int) -> int | None:
    if op.lane is not Lane.COMPUTE:
        return _LANES.get(op.lane)
    if op.phase is Phase.BACKWARD:
        return _AGAIN if is_again(op, new) else _BACKWARD
    return _FORWARD if op.phase is Phase.FORWARD else _UPDATE


def _add(row: Array, begin: float, end: float, seconds: float) -> None:
    """Spread the time from `begin` to `end`, shares of the whole, over the columns that it touches."""
    columns = len(row)
    for column in range(int(begin * columns), min(int(end * columns) + 1, columns)):
        inside = min(end, (column + 1) / columns) - max(begin, column / columns)
        row[column] += max(inside, 0.0) * seconds


def _hold(found: Grid, step: Step, rows: Sequence[int], new: int) -> None:
    """Play the allocator's events: who holds what at each column's middle, and the most that is alive in it."""
    ops, start, columns = step.planned.ops, step.timing.start, len(found.memory)
    held, away = np.zeros(len(found.names)), np.zeros(len(found.names))
    live = float(sum(step.planned.storages[i].nbytes for i in step.planned.pinned))
    holder: dict[int, int] = {}
    now, middle, column = 0.0, 0, 0
    for k, op in enumerate(ops):
        now = max(now, float(start[k])) if op.lane is Lane.COMPUTE else now
        while middle < columns and (middle + 0.5) / columns * found.seconds <= now:
            found.held[:, middle], found.away[:, middle] = held, away
            middle += 1
        until = min(int(now / found.seconds * columns), columns - 1)
        found.memory[column : until + 1] = np.maximum(found.memory[column : until + 1], live)
        column = until
        if op.phase is not Phase.STEP and op.lane in _LANES:
            away[rows[k]] += op.moved_bytes if op.lane is Lane.TO_HOST else -op.moved_bytes
        for nbytes, _, i in op.events:
            live += nbytes
            found.memory[column] = max(found.memory[column], live)
            if nbytes > 0 and _is_for_backward(step.planned, op, i, new):
                holder[i] = rows[k]
            if i in holder:
                held[holder[i]] += nbytes
    found.held[:, middle:], found.away[:, middle:] = held[:, None], away[:, None]
    found.memory[column:] = np.maximum(found.memory[column:], live)


def _is_for_backward(trace: Trace, op: Op, storage: int, new: int) -> bool:
    """Whether an op that allocates `storage` makes what a backward pass will read: forward, again, or brought back."""
    if storage < 0 or storage in trace.pinned or trace.storages[storage].kind in (Kind.PARAM, Kind.GRAD):
        return False
    return op.phase is Phase.FORWARD or op.lane is Lane.TO_DEVICE or is_again(op, new)
