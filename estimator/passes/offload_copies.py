"""Copies of activations to the host and back, as ops of a trace: what `offload` and `offload_conv` enter.

forward   op that uses it last   [copy_to_host]   ...   free        backward   [copy_to_device]   ops that read it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dnnmem.estimator.passes.draft import Draft, Life, back_uses
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase
from dnnmem.estimator.trace_copy import renamed, storage_like

OUT, IN = "dnnmem.copy_to_host.offload", "dnnmem.copy_to_device.offload"
"""Names of the copies."""
TO_FILE, FROM_FILE = "dnnmem.copy_to_file.offload", "dnnmem.copy_from_file.offload"
"""Names of those that go on to a disk, and begin there."""


def leave(draft: Draft, i: int, life: Life, k: int) -> None:
    """Free a storage at op `k` too, if that is before it was; where it was, `settle` takes it back."""
    if k < life.freed:
        draft.free(k, i)


def settle(draft: Draft, known: Mapping[int, Life], ids: Iterable[int]) -> None:
    """Let storages be freed once: where they were only if nothing else frees them, and no copy took that place."""
    first: dict[int, int] = {}
    for k, op in enumerate(draft.ops):
        for nbytes, _, i in op.events:
            if nbytes < 0:
                first.setdefault(i, k)
    for i in ids:
        if i in first and first[i] < known[i].freed:
            draft.unfree(known[i].freed, i)


def travel(
    draft: Draft, known: Mapping[int, Life], ids: Mapping[int, int], backward: Sequence[int], start: int, *,
    files: bool = False,
) -> None:  # fmt: skip
    """Copy storages out, each after the op that `ids` gives, and in before op `start`, for the `backward` ops to read.

    What they read then is freed where they, or others, let go of the first one. With `files` a disk is the end.
    """
    reading = set(backward)
    new: dict[int, int] = {}
    for i, last in ids.items():
        storage = draft.trace.storages[i]
        nbytes, module = storage.nbytes, draft.trace.ops[last].module
        free: tuple[Event, ...] = ()
        if any(e.storage == i and e.nbytes < 0 for e in draft.ops[last].events):  # that goes with the copy
            draft.unfree(last, i)
            free = (Event(-nbytes, 0, i),)
        out = Op(
            name=TO_FILE if files else OUT, module=module, phase=Phase.FORWARD, lane=Lane.TO_HOST, reads=(i,),
            events=free, moved_bytes=nbytes,
        )  # fmt: skip
        draft.after.setdefault(last, []).append(out)
        new[i] = draft.add(storage_like(storage, kind=Kind.ACTIVATION))
        back = Op(
            name=FROM_FILE if files else IN, module=module, phase=Phase.BACKWARD, lane=Lane.TO_DEVICE, writes=(new[i],),
            events=(Event(nbytes, 0, new[i]),), moved_bytes=nbytes,
        )  # fmt: skip
        draft.before.setdefault(start, []).append(back)
        uses = back_uses(storage, known[i], reading)
        ends = known[i].freed in reading
        for k in dict.fromkeys((*uses, known[i].freed) if ends else uses):
            draft.ops[k] = renamed(draft.ops[k], {i: new[i]})
        if not ends:
            draft.free(max(uses), new[i])
