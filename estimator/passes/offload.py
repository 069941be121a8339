"""Activation offload: what blocks save rests in the host's memory between their forward and their backward pass.

    forward    [0]  to host: a b   [1]  free a b; to host: c d     [2]  free c d      each is copied after its last use
    backward   to device: c d   [1]   to device: a b               [0]               a block ahead of where it is read

The last chosen block keeps what it saves, since it is needed next (Rhu et al. 2016 call this vDNN; here nothing waits
at the end of a layer: copies run on lanes of their own). Only what is at least `min_bytes` large travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dnnmem.estimator.block_list import block_lists
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.draft import Draft, Life, back_uses, lives
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Trace
from dnnmem.estimator.trace_copy import renamed, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan

OUT, IN = "dnnmem.copy_to_host.offload", "dnnmem.copy_to_device.offload"
"""Names of the copies."""
_Block = tuple[list[int], list[int]]
"""Forward and backward ops."""


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with its blocks' activations on the host. Raises `UnsupportedError` for fewer than two blocks."""
    del cluster
    if plan.offload.activations == "none":
        return trace
    every = plan.offload.every if plan.offload.activations == "every" else 1
    blocks = _blocks(trace)[every - 1 :: every]
    if len(blocks) < 2:
        raise UnsupportedError(
            f"offload.activations {plan.offload.activations} finds {len(blocks)} blocks in "
            f"{trace.origin.target or 'this step'}: it needs two, of which the last one keeps what it saves",
            hint="--set offload.activations=none",
        )
    draft, known = Draft(trace), lives(trace.ops)
    saved = [_saved(trace, known, block, plan.offload.min_bytes) for block in blocks[:-1]]
    reads = {k: n for n, (_, backward) in enumerate(blocks[:-1]) for k in backward}
    gone: dict[int, int] = {}
    for n, ids in enumerate(saved):
        for i in ids:
            gone[i] = max(gone.get(i, -1), blocks[n + 1][0][-1])
    for i, k in gone.items():
        others = [use for use in known[i].uses if use not in reads or i not in saved[reads[use]]]
        _leave(draft, i, known[i], max(k, *others))
    for n in (n for n in reversed(range(len(saved))) if saved[n]):
        ahead = n + 1 if n + 1 < len(saved) and saved[n + 1] else n
        start = _first_read(trace, known, blocks[ahead][1], saved[ahead])
        _travel(draft, known, blocks[n], saved[n], start)
    return draft.finish()


def _blocks(trace: Trace) -> list[_Block]:
    found: list[_Block] = []
    for some in block_lists(trace):
        inside: list[_Block] = [([], []) for _ in range(some.count)]
        for k, owner in enumerate(some.numbers(trace.ops)):
            if owner is not None and trace.ops[k].phase is not Phase.STEP:
                inside[owner][trace.ops[k].phase is Phase.BACKWARD].append(k)
        found += [block for block in inside if block[0] and block[1]]
    return found


def _saved(trace: Trace, known: dict[int, Life], block: _Block, least: int) -> list[int]:
    """What a block's backward pass reads of the forward pass, in the order of its last use there."""
    forward, backward = block
    inside, later = set(forward), set(backward)
    found: dict[int, int] = {}
    for i in {i for k in backward for i in (*trace.ops[k].reads, *trace.ops[k].frees)}:
        life, storage = known[i], trace.storages[i]
        if i in trace.pinned or storage.nbytes < least or not storage.saved or not 0 <= life.made <= forward[-1]:
            continue
        if not back_uses(storage, life, later):
            continue
        found[i] = max((k for k in life.uses if k in inside), default=forward[0])
    return sorted(found, key=lambda i: (found[i], i))


def _first_read(trace: Trace, known: dict[int, Life], backward: Sequence[int], ids: Sequence[int]) -> int:
    later = set(backward)
    return min(k for i in ids for k in back_uses(trace.storages[i], known[i], later))


def _leave(draft: Draft, i: int, life: Life, k: int) -> None:
    """Free a storage at op `k` instead of where it was; its copies are freed there."""
    if k < life.freed:
        draft.unfree(life.freed, i)
        draft.free(k, i)


def _travel(draft: Draft, known: dict[int, Life], block: _Block, ids: Sequence[int], start: int) -> None:
    """Copy out after the last use in the block, and in before op `start`."""
    forward, backward = block
    inside, reading = set(forward), set(backward)
    new: dict[int, int] = {}
    for i in ids:
        storage = draft.trace.storages[i]
        nbytes = storage.nbytes
        last = max((k for k in known[i].uses if k in inside), default=forward[0])
        module = draft.trace.ops[last].module
        out = Op(name=OUT, module=module, phase=Phase.FORWARD, lane=Lane.TO_HOST, reads=(i,), moved_bytes=nbytes)
        draft.after.setdefault(last, []).append(out)
        new[i] = draft.add(storage_like(storage, kind=Kind.ACTIVATION))
        back = Op(
            name=IN, module=module, phase=Phase.BACKWARD, lane=Lane.TO_DEVICE, writes=(new[i],),
            events=(Event(nbytes, 0, new[i]),), moved_bytes=nbytes,
        )  # fmt: skip
        draft.before.setdefault(start, []).append(back)
        uses = back_uses(storage, known[i], reading)
        end = known[i].freed if known[i].freed in reading else max(uses)
        for k in uses:
            draft.ops[k] = renamed(draft.ops[k], {i: new[i]})
        draft.free(end, new[i])
