"""From what a recorder noted to the Trace of the last step, as the step is when nobody watches it.

While any dispatch mode is active, autograd adds gradients out of place (`can_accumulate_inplace` in torch's
input_buffer.cpp asks for plain tensors). The rewrite undoes it: where the old sum died with the addition, nobody else
held it, so the engine would have added into it. Then the step is closed: what it leaves behind in place of what it
found (new gradients for old ones) becomes the same storage, so that the trace can follow itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from dnnmem.estimator.trace import Event, Kind, Module, Op, Origin, Part, Phase, Storage, Trace
from dnnmem.profilers.kinds import kind_of
from dnnmem.profilers.modules import LOSS
from dnnmem.profilers.record import Block, Log
from dnnmem.profilers.waits import close_waits


def to_trace(
    log: Log,
    *,
    modules: tuple[Module, ...],
    batch: Mapping[str, int | str],
    origin: Origin,
    seconds: Sequence[float | None] = (),
) -> tuple[Trace, int]:
    """The trace of the last step in `log`, and the bytes by which memory grew over it (a leak if it repeats).

    `seconds`: of each operator of that step, or empty.
    """
    names = _accumulate_in_place(log)
    first_entry, first_event = log.steps[-1]
    setup, pinned = _setup(log, names, first_event)
    windows = _windows(log, names, first_entry, first_event, pinned)
    setup = close_waits(setup, windows, log.waiting)
    entries = log.entries[first_entry:]
    moments, growth = _close(log, windows)
    ops = _ops(log, windows, names, moments, seconds or [None] * len(entries))
    storages = _storages(log, ops, setup, pinned, _read_back(log, names, moments))
    for number in storages.keys() & _brought(log, moments):
        if _is_batch(storages[number]):
            storages[number] = replace(storages[number], kind=Kind.INPUT)
    trace = Trace(
        ops=ops, storages=storages, setup=setup, pinned=frozenset(pinned), modules=modules, batch=batch, origin=origin
    )
    trace.check()
    return trace, growth


def _accumulate_in_place(log: Log) -> dict[int, int]:
    """New name of each sum that is really added into an older one; merges their blocks."""
    names: dict[int, int] = {}
    for entry in log.entries:
        if entry.accumulates is None:
            continue
        old, new = entry.accumulates
        if log.blocks[old].died != entry.tick:
            continue
        root = names.get(old, old)
        names[new] = root
        kept, gone = log.blocks[root], log.blocks[new]
        kept.died = gone.died
        kept.saved |= gone.saved
        if kept.kind is None:
            kept.kind, kept.module, kept.name = gone.kind, gone.module if gone.kind else kept.module, gone.name
    return names


def _events(log: Log, names: Mapping[int, int]) -> list[Event | None]:
    """All events under their final names; None for those which do not happen when nobody watches, or on the host."""
    last = {names.get(n, n): n for n in sorted(log.blocks)}
    result: list[Event | None] = []
    for nbytes, number in log.events:
        if number < 0:
            result.append(Event(nbytes, log.streams.get(number, 0), number))
            continue
        root = names.get(number, number)
        block = log.blocks[root]
        joined = nbytes > 0 and number != root
        passed_on = nbytes <= 0 and last[root] != number
        if block.host or joined or passed_on:
            result.append(None)
        else:
            sign = (nbytes > 0) - (nbytes < 0)
            result.append(Event(sign * block.nbytes, log.streams.get(root, 0), root))
    return result


def _setup(log: Log, names: Mapping[int, int], first_event: int) -> tuple[tuple[Event, ...], set[int]]:
    """Events before the step, found storages that survive first among them; and what lives when the step begins."""
    events = _events(log, names)
    setup = [e for e in events[:first_event] if e is not None]
    found_blocks = {n for n, block in log.blocks.items() if block.entry < 0 and block.died < 0}
    found = [
        e for e in events[first_event:]
        if e is not None and e.nbytes > 0 and e.storage in found_blocks
    ]  # fmt: skip
    setup.extend(found)
    pinned: set[int] = set()
    for event in setup:
        (pinned.add if event.nbytes > 0 else pinned.discard)(event.storage)
    return tuple(setup), pinned


def _windows(
    log: Log, names: Mapping[int, int], first_entry: int, first_event: int, pinned: set[int]
) -> list[list[Event]]:
    """Events of the step by op; window 0 holds what comes before the first op."""
    events = _events(log, names)
    starts = [first_event, *(e.start for e in log.entries[first_entry:]), len(events)]
    moved = {n for n in pinned if log.blocks[n].entry < 0 and log.blocks[n].died < 0}
    windows = []
    for start, stop in pairwise(starts):
        window = [e for e in events[start:stop] if e is not None]
        windows.append([e for e in window if not (e.nbytes > 0 and e.storage in moved)])
    return windows


def _close(log: Log, windows: list[list[Event]]) -> tuple[dict[int, tuple[int, int]], int]:
    """Give what the step leaves behind the name of what it found and freed; free the rest at the end.

    Returns for each renamed storage the window from which on it has its new name, and that name; and the growth.
    """
    made: dict[int, int] = {}
    freed: dict[int, int] = {}
    for index, window in enumerate(windows):
        for event in window:
            if event.nbytes > 0:
                made[event.storage] = index
            elif event.nbytes < 0 and made.pop(event.storage, None) is None:
                freed[event.storage] = index
    partners = _partners(log, made, freed)
    moments = _rename_events(windows, {left: (freed[found], found) for left, found in partners.items()})
    growth = 0
    for number in made.keys() - partners.keys():
        growth += log.blocks[number].nbytes
        windows[-1].append(Event(-log.blocks[number].nbytes, log.streams.get(number, 0), number))
    for number in freed.keys() - set(partners.values()):
        growth -= log.blocks[number].nbytes
        windows[-1].append(Event(log.blocks[number].nbytes, log.streams.get(number, 0), number))
    return moments, growth


def _partners(log: Log, made: Iterable[int], freed: Mapping[int, int]) -> dict[int, int]:
    """Which found storage each one that the step leaves replaces: first those alike, then those of the same size."""
    partners: dict[int, int] = {}
    for likeness in (_alike, _same_size):
        waiting: dict[object, list[int]] = defaultdict(list)
        for number in reversed(freed):
            if number not in partners.values():
                waiting[likeness(log.blocks[number])].append(number)
        for number in made:
            if number not in partners and waiting[likeness(log.blocks[number])]:
                partners[number] = waiting[likeness(log.blocks[number])].pop()
    return partners


def _alike(block: Block) -> object:
    return block.nbytes, block.kind, block.module if block.kind else None, block.name


def _same_size(block: Block) -> object:
    return block.nbytes


def _rename_events(windows: list[list[Event]], partners: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Swap the names of left and found storages from the moment on at which the found one dies.

    `partners`: left storage -> (window in which the found one dies, found storage).
    """
    left_of = {found: left for left, (_, found) in partners.items()}
    alive: set[int] = set()
    moments: dict[int, tuple[int, int]] = {}
    swapped: dict[int, int] = {}
    for index, window in enumerate(windows):
        for i, event in enumerate(window):
            number = event.storage
            if event.nbytes < 0 and number in left_of and left_of[number] not in moments:
                left = left_of[number]
                moments[left] = (index + 1 if left in alive else index, number)
                if left in alive:
                    swapped[number] = left
                    window[i] = event._replace(storage=left)
            elif not event.nbytes and number in swapped:
                window[i] = event._replace(storage=swapped[number])
            elif number in moments:
                window[i] = event._replace(storage=moments[number][1])
            elif number in partners:
                alive.add(number)
    return moments


def _ops(
    log: Log,
    windows: list[list[Event]],
    names: Mapping[int, int],
    moments: Mapping[int, tuple[int, int]],
    seconds: Sequence[float | None],
) -> tuple[Op, ...]:
    hosts = {n for n, block in log.blocks.items() if block.host}
    entries = log.entries[log.steps[-1][0] :]

    def final(numbers: tuple[int, ...], index: int) -> tuple[int, ...]:
        result: dict[int, None] = {}
        for number in numbers:
            root = names.get(number, number)
            moment, found = moments.get(root, (len(windows), root))
            if root not in hosts:
                result[found if index >= moment else root] = None
        return tuple(result)

    releases = _releases(log)
    ops = []
    if windows[0]:
        ops.append(Op(name="dnnmem.begin", events=tuple(windows[0])))
    for index, (entry, window) in enumerate(zip(entries, windows[1:], strict=True), start=1):
        if ops and hosts.issuperset((*entry.reads, *entry.writes)):
            ops[-1] = replace(ops[-1], events=(*ops[-1].events, *window))
            continue
        joined = entry.accumulates is not None and entry.accumulates[1] in names
        ops.append(
            Op(
                name="aten.add_.Tensor" if joined else entry.name,
                module=entry.place.module,
                phase=entry.place.phase,
                reads=final(entry.reads, index),
                writes=final(entry.writes, index),
                events=tuple(window),
                releases=final(releases.get(index - 1, ()), index),
                flops=entry.flops,
                masked_flops=entry.masked_flops,
                moved_bytes=entry.moved_bytes,
                seconds=seconds[index - 1],
                source=entry.place.source,
            )
        )
    return tuple(ops)


def _releases(log: Log) -> dict[int, tuple[int, ...]]:
    """Saved storages by the forward entry of the last step after which the program's variables hold them no more.

    Only those held during their last use or beyond it, and not when the pass is over; in the order of letting go.
    """
    first = log.steps[-1][0]
    used: dict[int, int] = {}
    for index, entry in enumerate(log.entries[first:]):
        if entry.place.phase is Phase.FORWARD:
            used.update(dict.fromkeys((*entry.reads, *entry.writes), index))
    end = max(used.values(), default=-1)
    found: dict[int, tuple[int, ...]] = {}
    for number, held in log.held.items():
        index = held - first
        if log.blocks[number].saved and log.blocks[number].entry >= first and used.get(number, end) <= index <= end:
            found[index] = (*found.get(index, ()), number)
    return found


def _storages(
    log: Log, ops: tuple[Op, ...], setup: tuple[Event, ...], pinned: set[int], read_back: set[int]
) -> dict[int, Storage]:
    """Every storage that the setup or the step names, with its kind."""
    used = {e.storage for e in setup} | pinned | {e.storage for op in ops for e in op.events}
    used = {number for number in used if number >= 0}
    survivors = _outlive_forward(ops)
    result = {}
    for number in sorted(used):
        block = log.blocks[number]
        phase = log.entries[block.entry].place.phase if block.entry >= 0 else None
        kind = kind_of(block, phase=phase, outlives_forward=number in survivors)
        saved = kind is Kind.ACTIVATION and (block.saved or (phase is Phase.FORWARD and number in read_back))
        if number in pinned and block.kind is None:
            kind = Kind.BUFFER
        result[number] = Storage(
            id=number,
            nbytes=block.nbytes,
            kind=kind,
            shape=block.shape,
            dtype=block.dtype,
            channels_last=block.channels_last,
            module=block.module or _maker(log, block),
            name=block.name or (log.entries[block.entry].name if block.entry >= 0 else ""),
            saved=saved,
            parts=_parts(block),
        )
    return result


def _parts(block: Block) -> tuple[Part, ...]:
    if block.kind not in (Kind.PARAM, Kind.GRAD) or len(block.parts) < 2:
        return ()
    return tuple(Part(*owner, shape) for owner, shape in block.parts.items())


def _maker(log: Log, block: Block) -> tuple[str, ...]:
    """The module whose operator made what the program has kept since an earlier step."""
    module = log.entries[block.entry].place.module if block.entry >= 0 else ()
    return () if module == LOSS else module


def _brought(log: Log, moments: Mapping[int, tuple[int, int]]) -> set[int]:
    """What each step replaces by something made of nothing on the device: a batch that the loop's variable holds."""
    found: set[int] = set()
    for left, (_, kept) in moments.items():
        entry = log.entries[log.blocks[left].entry] if log.blocks[left].entry >= 0 else None
        if entry is None or entry.reads or entry.place.phase is not Phase.FORWARD:
            continue
        if entry.place.module in ((), LOSS):
            found |= {left, kept}
    return found


def _is_batch(storage: Storage) -> bool:
    return storage.kind is Kind.ACTIVATION or (storage.kind is Kind.BUFFER and not storage.module)


def _read_back(log: Log, names: Mapping[int, int], moments: Mapping[int, tuple[int, int]]) -> set[int]:
    """Storages that autograd's nodes read; the engine's own first gradient, made from the loss, reads nothing of it."""
    backward = (e for e in log.entries[log.steps[-1][0] :] if e.place.node is not None)
    read = {names.get(n, n) for entry in backward for n in entry.reads}
    return read | {moments[n][1] for n in read & moments.keys()}


def _outlive_forward(ops: tuple[Op, ...]) -> set[int]:
    """Storages alive when some backward begins."""
    live: set[int] = set()
    result: set[int] = set()
    backward = False
    for op in ops:
        if op.phase is Phase.BACKWARD and not backward:
            result |= live
        backward = op.phase is Phase.BACKWARD
        for event in op.events:
            if event.nbytes:
                (live.add if event.nbytes > 0 else live.discard)(event.storage)
    return result
