"""The same step with more blocks: a trace of a model with three equal blocks becomes one with any number of them.

    recorded     embed  [0]  [1]  [2]  head  [2]' [1]' [0]'  update(0, 1, 2)       []' backward
    repeated     embed  [0]  [1]  [1a] [1b] [2]  head  [2]' [1b]' [1a]' [1]' [0]'  update(0, 1, 1a, 1b, 2)

The second block is the pattern, or the first after some that are others: it is like all that follow. A storage that a
block touches has a place in a chain (its input is the output of the block before), found by laying the pattern's ops
beside those of the block after it; a copy touches the same places of its own. Lists of an update, and frees, are
extended in their order. Only what the host does for each parameter (its step counters) keeps the recorded size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count as counting

from dnnmem.estimator.block_chain import Chain, Names, Place
from dnnmem.estimator.block_list import BlockList, blocks_of_ops, main_list
from dnnmem.estimator.collector import collector_paused
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.trace import Event, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like


@collector_paused()
def repeat(trace: Trace, count: int) -> Trace:
    """`trace` as if its list of blocks had `count` of them; unchanged if it has.

    Raises `UsageError` if there are fewer than two equal blocks or `count` is less than recorded, and
    `UnsupportedError` where the blocks do different things.
    """
    blocks = main_list(trace)
    if blocks is None:
        raise UsageError(
            f"{trace.origin.target or 'the model'} has no list of 2 or more equal blocks; only such a list is repeated",
            hint="record the model with 3 blocks in a ModuleList",
        )
    if count < blocks.count:
        raise UsageError(
            f"{count} blocks are wanted, but {blocks.count} are recorded; blocks are added, never taken away",
            hint="record the model with 3 blocks",
        )
    if count == blocks.count:
        return trace
    chain = Chain(blocks=blocks, pattern=blocks.pattern, copies=count - blocks.count)
    owners = _owners(trace, chain)
    names = Names(fresh=counting(max(trace.storages, default=0) + 1))
    ops = tuple(_ops(trace.ops, owners, chain, names, trace.storages))
    pinned = set(trace.pinned)
    for i in trace.pinned:
        if chain.place.get(i) == chain.pattern:
            pinned.update(names.name((i, n)) for n in range(chain.pattern + 1, chain.pattern + chain.copies + 1))
    before = Names(fresh=names.fresh)
    setup = _setup(trace, owners, chain, names, before)
    storages = _storages(trace, chain, {**before.copies, **names.copies})
    if setup is None:
        setup = tuple(Event(storages[i].nbytes, 0, i) for i in sorted(pinned) if storages[i].nbytes)
    spread = chain.spread([blocks.index(m.path) for m in trace.modules])
    modules = tuple(replace(m, path=chain.rename(m.path, n)) for m, n in ((trace.modules[i], n) for i, n in spread))
    origin = replace(trace.origin, notes=(*trace.origin.notes, note_of(blocks, count)))
    return replace(
        trace, ops=ops, storages=storages, setup=setup, pinned=frozenset(pinned), modules=modules, origin=origin
    )


def note_of(blocks: BlockList, count: int) -> str:
    """What a trace says that has `count` of these blocks."""
    return (
        f"{'.'.join(blocks.root)} has {count} blocks: {blocks.count} were recorded, block {blocks.pattern} is repeated."
    )


def repeated_flops(trace: Trace, count: int) -> int:
    """Flops of the step that `repeat` makes, `trace` having equal blocks."""
    flops, blocks = sum(op.flops for op in trace.ops), main_list(trace)
    if blocks is None:
        return flops
    owners = blocks_of_ops(trace.ops, blocks)
    each = sum(op.flops for op, owner in zip(trace.ops, owners, strict=True) if owner == blocks.pattern)
    return flops + (count - blocks.count) * each


def _owners(trace: Trace, chain: Chain) -> list[Place]:
    """The block of each op; fills in the chain."""
    owners = blocks_of_ops(trace.ops, chain.blocks)
    place = chain.place
    for i, storage in trace.storages.items():
        index = chain.blocks.index(storage.module)
        if index is not None and storage.name != "workspace":
            place[i] = index
    for k, op in enumerate(trace.ops):
        known = {place[i] for i in (*op.reads, *op.writes) if i in place}
        if owners[k] is None and op.phase is Phase.STEP and len(known) == 1:
            owners[k] = min(known)
        made = [i for i in op.writes if i not in place and i not in trace.pinned and _allocates(op, i)]
        if (owner := owners[k]) is not None:
            place.update(dict.fromkeys(made, owner))
        elif len(made) > 1 and len(op.reads) % len(made) == 0:  # one of a list for each of a list
            place.update((w, place[r]) for w, r in zip(made, op.reads, strict=False) if r in place)
    _link(trace.ops, owners, chain)
    return owners


def _allocates(op: Op, storage: int) -> bool:
    return any(e.storage == storage and e.nbytes > 0 for e in op.events)


def _link(ops: Sequence[Op], owners: Sequence[Place], chain: Chain) -> None:
    """Lay the pattern beside the block after it."""
    ours, theirs = ([op for op, owner in zip(ops, owners, strict=True) if owner == chain.pattern + d] for d in (0, 1))
    shared: set[int] = set()
    if len(ours) != len(theirs):
        raise _unlike(chain, f"they have {len(ours)} and {len(theirs)} ops")
    for a, b in zip(ours, theirs, strict=True):
        if a.name != b.name or (len(a.reads), len(a.writes)) != (len(b.reads), len(b.writes)):
            raise _unlike(chain, f"{a.name} in {'.'.join(a.module)} stands where {b.name} in {'.'.join(b.module)} does")
        for i, j in zip((*a.reads, *a.writes), (*b.reads, *b.writes), strict=True):
            if i == j:
                shared.add(i)
            elif chain.after.setdefault(i, j) != j or chain.before.setdefault(j, i) != i:
                raise _unlike(chain, f"{a.name} in {'.'.join(a.module)} reads or writes storages of another origin")
    for i, j in chain.after.items():
        known = chain.place.get(i, chain.place.get(j, chain.pattern + 1) - 1)
        chain.place[i], chain.place[j] = known, known + 1
    for i in shared:
        chain.place.pop(i, None)


def _unlike(chain: Chain, what: str) -> UnsupportedError:
    root = ".".join(chain.blocks.root)
    return UnsupportedError(
        f"blocks {chain.pattern} and {chain.pattern + 1} of {root} are not alike: {what}",
        hint="profile the model with its own number of blocks",
    )


def _ops(
    ops: Sequence[Op], owners: Sequence[Place], chain: Chain, names: Names, storages: Mapping[int, Storage]
) -> Iterator[Op]:
    for k, copy in chain.spread(owners):
        op, owner = ops[k], owners[k]
        if owner is None:
            yield _widen(op, chain, names, storages)
            continue
        now = _now(owner, copy, chain)
        new = {i: names.name(chain.resolve(i, owner, now)) for i in (*op.reads, *op.writes)}
        yield op_like(
            op,
            module=chain.rename(op.module, copy),
            reads=tuple([new[i] for i in op.reads]),
            writes=tuple([new[i] for i in op.writes]),
            releases=tuple([names.name(chain.resolve(i, owner, now)) for i in op.releases]),
            events=tuple(_events(op.events, owner, copy, chain, names)),
        )


def _now(owner: int, copy: Place, chain: Chain) -> int:
    """The number that block `owner` or its copy has in the longer model."""
    return copy if copy is not None else owner if owner <= chain.pattern else owner + chain.copies


def _events(events: Sequence[Event], owner: int, copy: Place, chain: Chain, names: Names) -> Iterator[Event]:
    """Events of an op of block `owner`, or of its copy."""
    now = _now(owner, copy, chain)
    base = [names.base.get(e.storage, e.storage) for e in events]
    ends = _list_that_ends(events, base, chain) if copy is None and owner > chain.pattern else set()
    for k, (e, i) in enumerate(zip(events, base, strict=True)):
        if i in ends:
            if ends.isdisjoint(base[:k]):
                yield from _widen_events([e for e, i in zip(events, base, strict=True) if i in ends], chain, names)
        elif e.storage < 0:
            yield e
        elif copy is None or i in chain.place:  # what all share comes and goes once
            yield Event(e.nbytes, e.stream, names.name(chain.resolve(i, owner, now)))


def _list_that_ends(events: Sequence[Event], base: Sequence[int], chain: Chain) -> set[int]:
    """What blocks had put into a list that the program lets go of here: all hidden states, or all gradients."""
    freed = {i for e, i in zip(events, base, strict=True) if e.nbytes < 0}
    found = {i for i in freed if chain.after.get(i) in freed or chain.before.get(i) in freed}
    first = {i for i in freed if chain.place.get(i, chain.pattern) < chain.pattern and i not in chain.after}
    return found | first if found else found


def _touched(op: Op) -> dict[int, None]:
    return dict.fromkeys((*op.reads, *op.writes, *(e.storage for e in op.events if e.storage >= 0)))


def _storages(trace: Trace, chain: Chain, copies: Mapping[tuple[int, int], int]) -> dict[int, Storage]:
    """Storages of the trace and their copies, in the order of a model that long."""
    found: dict[int, Storage] = {}
    copied = {i for i, _ in copies}
    ids = list(trace.storages)
    for k, copy in chain.spread([chain.pattern if i in copied else chain.place.get(i) for i in ids]):
        s = trace.storages[ids[k]]
        new = s.id if copy is None else copies.get((s.id, copy))
        if new is not None:
            found[new] = storage_like(s, id=new, module=chain.rename(s.module, copy))
    return found


def _widen(op: Op, chain: Chain, names: Names, storages: Mapping[int, Storage]) -> Op:
    """An op outside of the blocks: where it takes a list with the pattern's storages, it takes the copies' too."""
    if all(chain.place.get(i) != chain.pattern for i in _touched(op)):
        return op
    reads, writes = (_widen_ids(ids, chain, names) for ids in (op.reads, op.writes))
    old = sum(storages[i].nbytes for i in (*op.reads, *op.writes))
    copied = sum(storages[i].nbytes for i in (*op.reads, *op.writes) if chain.place.get(i) == chain.pattern)
    more = chain.copies * copied
    return op_like(
        op,
        reads=reads,
        writes=writes,
        events=_widen_events(op.events, chain, names),
        moved_bytes=op.moved_bytes * (old + more) // old if old else op.moved_bytes,
        flops=op.flops * (old + more) // old if old else op.flops,
    )


def _widen_ids(ids: Sequence[int], chain: Chain, names: Names) -> tuple[int, ...]:
    spread = chain.spread([chain.place.get(i) for i in ids])
    return tuple(names.name((ids[k], copy)) for k, copy in spread)


def _widen_events(events: Sequence[Event], chain: Chain, names: Names) -> tuple[Event, ...]:
    base = [names.base.get(e.storage, e.storage) for e in events]
    spread = chain.spread([chain.place.get(i) for i in base])
    return tuple(
        events[k] if copy is None else Event(events[k].nbytes, events[k].stream, names.name((base[k], copy)))
        for k, copy in spread
    )


def _setup(
    trace: Trace, owners: Sequence[Place], chain: Chain, names: Names, before: Names
) -> tuple[Event, ...] | None:
    """The set-up with copies; None where it is not some steps like the recorded one, and what is pinned besides.

    `before` gets the copies of what lives in the set-up only.
    """
    pinned = {key: new for key, new in names.copies.items() if key[0] in trace.pinned}
    step = list(trace.events())
    inside = [k for k, e in enumerate(trace.setup) if e.storage not in trace.pinned]
    if trace.setup and not inside:  # a pass has left what is pinned only
        return _widen_events(trace.setup, chain, names)
    if not step or len(inside) % len(step):
        return None
    found: list[Event] = []
    at = 0
    for first in range(0, len(inside), len(step)):
        mine = [trace.setup[k] for k in inside[first : first + len(step)]]
        base = {a.storage: b.storage for a, (_, b) in zip(mine, step, strict=True)}
        if any((a.nbytes, base[a.storage]) != (b.nbytes, b.storage) for a, (_, b) in zip(mine, step, strict=True)):
            return None
        lists: dict[int, list[Event]] = {}
        place = -1
        last = first + len(step)
        end = inside[last] if last < len(inside) else len(trace.setup)
        ops = iter(k for k, _ in step)
        for event in trace.setup[at:end]:
            place = place if event.storage in trace.pinned else next(ops)
            lists.setdefault(place, []).append(event)
        at = end
        own = Names(fresh=names.fresh, base=base, own={b: a for a, b in base.items()}, copies=dict(pinned))
        found += _setup_step(lists, owners, chain, own)
        before.copies.update({(own.own[i], n): new for (i, n), new in own.copies.items() if i not in trace.pinned})
    return tuple(found)


def _setup_step(lists: dict[int, list[Event]], owners: Sequence[Place], chain: Chain, names: Names) -> Iterator[Event]:
    yield from _widen_events(lists.pop(-1, ()), chain, names)
    for k, copy in chain.spread(owners):
        events, owner = lists.get(k, ()), owners[k]
        if owner is None:
            yield from _widen_events(events, chain, names)
            continue
        yield from _events(events, owner, copy, chain, names)
