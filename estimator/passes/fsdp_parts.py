"""What FSDP2 holds of a tensor, and on which streams its buffers lie.

>>> from dnnmem.estimator.trace import Kind
>>> part_of(Storage(id=0, nbytes=40, kind=Kind.PARAM, shape=(5, 2), dtype="float32"), 2).shape
(3, 2)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dnnmem.estimator.passes.draft import UNPADDED, Draft, Life, made_storage
from dnnmem.estimator.passes.fsdp_groups import LOSS, Group
from dnnmem.estimator.trace import Event, Kind, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

GATHER_STREAM = 1
"""Stream of the gathers' buffers: a pool of their own."""
SCATTER_STREAM = 2
"""Stream of what reduce-scatters make: gradients at rest."""
_BLOCK_BYTES = 128 * 16
"""What one block of threads copies (`BLOCK_SIZE * BYTES_PER_THREAD` of aten/src/ATen/native/cuda/TensorShape.cu)."""


def part_of(storage: Storage, ranks: int) -> Storage:
    """The largest rank's part: rows of dimension 0, padded up."""
    rows = storage.shape[0] if storage.shape else 1
    if not rows or storage.nbytes % rows:
        return storage_like(storage, nbytes=-(-storage.nbytes // ranks))
    part = -(-rows // ranks)
    return storage_like(storage, nbytes=storage.nbytes // rows * part, shape=(part, *storage.shape[1:]))


def without_padding(part: Storage, whole: Storage, number: int) -> Storage:
    """What the `number`-th of the ranks with such a `part` has of the `whole` tensor's rows.

    >>> whole = Storage(id=0, nbytes=40, kind=Kind.PARAM, shape=(5, 2), dtype="float32")
    >>> [without_padding(part_of(whole, 4), whole, number).nbytes for number in range(4)]
    [16, 16, 8, 0]
    """
    rows = part.shape[0] if part.shape else 0
    if not rows or part.shape[1:] != whole.shape[1:]:
        return part
    own = min(max(whole.shape[0] - rows * number, 0), rows)
    if own == rows:
        return part
    return storage_like(part, nbytes=part.nbytes // rows * own, shape=(own, *part.shape[1:]))


def pad_late(draft: Draft, groups: Iterable[Group], own: Mapping[int, Storage]) -> None:
    """Parameters of fewer rows than others have are padded before the first step, group by group, the root's first."""
    for i in (i for group in sorted(groups, key=lambda g: not g.root) for i in group.params):
        if own[i].nbytes < draft.storages[i].nbytes:
            draft.padded[i] = draft.add(made_storage(own[i].nbytes, Kind.COMM, UNPADDED))


def chunk_table(parts: Sequence[int]) -> tuple[Event, ...]:
    """What `torch._chunk_cat` needs on the GPU for parts of so many bytes: 8 bytes a block of threads, 48 a tensor."""
    nbytes = 8 * (sum(-(-part // _BLOCK_BYTES) for part in parts) + 6 * len(parts) + 2)
    return Event(nbytes, 0, -1), Event(-nbytes, 0, -1)


def span(trace: Trace, phase: Phase) -> tuple[int, int]:
    """First and last op of the model in a phase, the loss left out; all of the trace where there is none."""
    inside = [k for k, op in enumerate(trace.ops) if op.phase is phase and op.module != LOSS]
    return (inside[0], inside[-1]) if inside else (0, len(trace.ops) - 1)


def is_made(trace: Trace, known: Mapping[int, Life], grad: int) -> bool:
    """Whether the backward pass makes a gradient, or adds to it."""
    ops = (trace.ops[k] for k in known[grad].uses) if grad in known else ()
    return any(op.phase is Phase.BACKWARD and grad in op.writes for op in ops)


def free_after(draft: Draft, k: int, ids: Iterable[int], stream: int = 0) -> None:
    """Free storages after op `k` and what already follows it."""
    sizes = ((draft.storages[i].nbytes, i) for i in ids)
    frees = [Event(-nbytes, stream, i) for nbytes, i in sizes if nbytes]
    after = draft.after.get(k)
    last = after[-1] if after else draft.ops[k]
    last = op_like(last, events=(*last.events, *frees))
    if after:
        after[-1] = last
    else:
        draft.ops[k] = last


def merge_gradients(draft: Draft, sums: Mapping[int, int], *, stay: bool) -> None:
    """Let the update read, and whatever frees gradients free, those of a group at once.

    `sums`: the storage of its group's gradients, by gradient; `stay`: it stays where they stayed.
    """
    merged, last = sums.keys(), dict[int, int]()
    held: set[int] = set()
    for k, op in enumerate(draft.ops):
        for _, _, i in op.events:
            if i in sums:
                last[sums[i]] = k
                held.add(k)
    for k, op in enumerate(draft.ops):
        if k not in held and merged.isdisjoint(op.reads) and merged.isdisjoint(op.writes):
            continue
        reads, writes = (tuple(dict.fromkeys(sums.get(i, i) for i in ids)) for ids in (op.reads, op.writes))
        at = {sums[e.storage]: n for n, e in enumerate(op.events) if e.storage in sums}
        sizes = {i: draft.storages[i].nbytes for i in at if last[i] == k}
        events = (
            e if e.storage not in sums else Event(-sizes.get(sums[e.storage], 0), SCATTER_STREAM, sums[e.storage])
            for n, e in enumerate(op.events) if at.get(sums.get(e.storage, -1), n) == n
        )  # fmt: skip
        draft.ops[k] = op_like(op, reads=reads, writes=writes, events=tuple(e for e in events if e.nbytes))
    if stay:
        draft.pinned.update(sums[g] for g in sums.keys() & draft.pinned)
    draft.pinned.difference_update(sums)
    for i in sums:
        draft.storages.pop(i, None)
