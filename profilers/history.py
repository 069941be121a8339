"""Joins a recorder's log with the CUDA allocator's own history, which has the true order and the hidden temporaries.

Each history entry carries the label that was set when it happened: `12` inside the operator with dispatch count 12,
`~12` after it, empty before the first one. A block of the log is the allocation at its address that lives when it is
first seen; allocations which no block claims are temporaries, or a library's workspace if they outlive their operator
or are older than the first one and never freed. A block that another stream uses serves again some time after its free,
which is an event of its own then.

    history   alloc 0x1000 "7"   alloc 0x2000 "7"   free 0x2000 "7"   free 0x1000 "~9"
    log       op 7 made block 3 at 0x1000
    events    (+n, 3)            (+m, -1)           (-m, -1)          (-n, 3)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from dnnmem.estimator.trace import Kind
from dnnmem.profilers.record import Block, Log

_FREE = frozenset({"free_requested", "free"})


@dataclass(slots=True)
class _Allocation:
    nbytes: int
    tick: int
    """Dispatch count of the operator in or after which it happened."""
    stream: int = 0
    """0 for the default stream, others by their first allocation."""
    freed: int | None = None
    """The same for its free; None while it lives."""
    inside: bool = True
    """True if it was made inside the operator."""
    number: int | None = None
    """Storage in the trace."""
    late: bool = False
    """True if it did not serve again at once when it was freed."""


_Order = list[tuple[int, int, int, _Allocation]]
"""(tick, address, 1 for an allocation, -1 for its free or 0 for when it serves again, which) in order."""


def use_history(log: Log, history: list[dict[str, Any]]) -> None:
    """Replace the events of `log` by those of the allocator's history, temporaries and workspaces included."""
    allocations, order, waiting = _read(history)
    at_address = _by_address(order)
    for number, block in log.blocks.items():
        fitting = [a for a in at_address.get(block.address, ()) if _may_be(a, block)]
        exact = (a for a in fitting if a.freed == block.died or (a.freed is None and block.died < 0))
        allocation = next(exact, fitting[0] if fitting else None)
        if allocation is not None:
            allocation.number = number
            block.nbytes = allocation.nbytes
    named = {allocation.number for allocation in allocations}
    before = [
        (0, block.address, 1, _Allocation(block.nbytes, 0, number=number))
        for number, block in log.blocks.items()
        if number not in named
    ]  # what lived when the history began, such as a library's state
    _name_the_rest(log, allocations)
    _rebuild(log, before + order)
    log.waiting = [a.number for a in waiting if a.number is not None]


def _may_be(allocation: _Allocation, block: Block) -> bool:
    """Whether `block`, seen at an address, can be what was allocated there: begun by then, not freed, nobody else's."""
    lives = allocation.freed is None or allocation.freed >= block.seen
    return allocation.number is None and allocation.tick <= block.seen and lives


def _read(history: list[dict[str, Any]]) -> tuple[list[_Allocation], _Order, list[_Allocation]]:
    """Allocations, what happened to them, and which of them are freed and do not serve again yet at the end."""
    live: dict[int, _Allocation] = {}
    waiting: dict[int, _Allocation] = {}
    found: list[_Allocation] = []
    order: _Order = []
    streams = {0: 0}
    now = 0
    for event in history:
        label = str(event.get("user_metadata") or "~0")
        tick = int(label.lstrip("~"))
        inside = not label.startswith("~") and tick >= now
        tick = now = max(now, tick)  # a label is a thread's own: another thread's is stale
        address = int(event["addr"])
        if event["action"] == "alloc":
            stream = streams.setdefault(int(event.get("stream", 0)), len(streams))
            allocation = _Allocation(int(event["size"]), tick, stream, inside=inside)
            live[address] = allocation
            found.append(allocation)
            order.append((tick, address, 1, allocation))
        elif event["action"] in _FREE and address in live:
            allocation = live.pop(address)
            allocation.freed = tick
            order.append((tick, address, -1, allocation))
            if event["action"] == "free_requested":
                waiting[address] = allocation
        elif event["action"] == "free_completed" and address in waiting:
            allocation = waiting.pop(address)
            if order[-1][3] is not allocation:
                allocation.late = True
                order.append((tick, address, 0, allocation))
    for allocation in waiting.values():
        allocation.late = True
    return found, order, list(waiting.values())


def _by_address(order: _Order) -> dict[int, list[_Allocation]]:
    result: dict[int, list[_Allocation]] = defaultdict(list)
    for _, address, sign, allocation in order:
        if sign > 0:
            result[address].insert(0, allocation)
    return result


def _name_the_rest(log: Log, allocations: list[_Allocation]) -> None:
    """Temporaries get negative numbers; what outlives its operator becomes a block of its own."""
    by_tick = {entry.tick: index for index, entry in enumerate(log.entries)}
    temporary = 0
    for allocation in allocations:
        if allocation.number is not None:
            continue
        if allocation.inside and allocation.freed == allocation.tick and not allocation.late:
            temporary -= 1
            allocation.number = temporary
            continue
        allocation.number = max(log.blocks, default=-1) + 1
        entry = by_tick.get(allocation.tick, -1)
        module = log.entries[entry].place.module if entry >= 0 else None
        kept = allocation.freed is None and (allocation.inside or allocation.tick == 0)
        log.blocks[allocation.number] = Block(
            allocation.nbytes,
            (),
            "",
            entry,
            kind=Kind.TEMP if kept else None,
            module=module,
            name="workspace" if kept else "",
            died=-1 if allocation.freed is None else allocation.freed,
        )


def _rebuild(log: Log, order: _Order) -> None:
    """Events in the allocator's order, and where each op and step begins in them."""
    log.events = []
    log.streams = {a.number: a.stream for _, _, _, a in order if a.number is not None and a.stream}
    ticks = [tick for tick, _, _, _ in order]
    for _, _, sign, allocation in order:
        assert allocation.number is not None  # noqa: S101 - all are named by now
        log.events.append((sign * allocation.nbytes, allocation.number))
    for entry in log.entries:
        entry.start = bisect_left(ticks, entry.tick)
    log.steps = [(first, bisect_left(ticks, tick)) for (first, _), tick in zip(log.steps, log.ticks, strict=True)]
