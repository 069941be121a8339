"""Activation offload: what blocks save rests in the host's memory between their forward and their backward pass.

    forward    [0]  to host: a b   [1]  free a b; to host: c d     [2]  free c d      each is copied after its last use
    backward   to device: c d   [2]   to device: a b   [1]         [0]                a block ahead of where it is read

The model's last block keeps what it saves, since it is needed next (Rhu et al. 2016 call this vDNN; here nothing waits
at the end of a layer: copies run on lanes of their own). Only what is at least `min_bytes` large travels. Blocks that
are computed again as one save the input of the first. Autocast holds its copies of parameters until the model returns.
`conv` is `offload_conv`'s.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnnmem.estimator.block_list import block_lists
from dnnmem.estimator.passes import offload_conv
from dnnmem.estimator.passes.draft import Draft, Life, back_uses, lives
from dnnmem.estimator.passes.offload_copies import leave, settle, travel
from dnnmem.estimator.passes.remat_frees import is_cast, model_end
from dnnmem.estimator.sent_blocks import sent_runs
from dnnmem.estimator.trace import Lane, Phase, Trace

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan

_CAST = "aten._to_copy.default"
_OPS_ARE_KEPT = ("selective", "ops")
"""Policies under which blocks keep outputs of ops where no hook sees them: only what enters a block travels."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """A block, or several that are computed again as one."""

    forward: list[int]
    backward: list[int]
    sends: bool


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with activations on the host. Raises `UnsupportedError` where nothing would travel."""
    if plan.offload.activations == "none":
        return trace
    if plan.offload.activations == "conv":
        return offload_conv.apply(trace, plan, cluster)
    units = _units(trace, plan)
    draft, known = Draft(trace), lives(trace.ops)
    made_inside = plan.remat.policy not in _OPS_ARE_KEPT
    saved = [
        _saved(trace, known, unit, plan.offload.min_bytes, made_inside=made_inside)
        if unit.sends and n + 1 < len(units)
        else {}
        for n, unit in enumerate(units)
    ]
    reads = {k: n for n, unit in enumerate(units) for k in unit.backward}
    gone: dict[int, int] = {}
    end = model_end(trace)
    for n, ids in enumerate(saved):
        for i in ids:
            last = end if is_cast(trace, known[i].made) else units[n + 1].forward[-1]
            gone[i] = max(gone.get(i, -1), last)
    held = {i: k for k, op in enumerate(trace.ops) if op.phase is Phase.FORWARD for i in op.releases}
    for i in sorted(gone, key=lambda i: held.get(i, -1) >= gone[i]):  # variables let go when a block has
        leave(draft, i, known[i], max(gone[i], held.get(i, -1), *_other_uses(known[i], i, reads, saved)))
    for n in (n for n in reversed(range(len(units))) if saved[n]):
        start = min(_begin(trace, units[n + 1].backward[0]), *_reads(trace, known, units[n].backward, saved[n]))
        travel(draft, known, saved[n], units[n].backward, start, files=plan.offload.files)
    settle(draft, known, gone)
    return draft.finish()


def _begin(trace: Trace, first: int) -> int:
    """Where a block's backward pass begins: what tensor parallelism gathers for its `first` op belongs to it."""
    ops = trace.ops
    while first and ops[first - 1].name.endswith(".tp") and ops[first - 1].module == ops[first].module:
        first -= 1
    return first


def _units(trace: Trace, plan: Plan) -> list[_Unit]:
    """In the order in which they run; those that do not are left out."""
    inside: list[tuple[list[int], list[int]]] = []
    for some in block_lists(trace):
        base = len(inside)
        inside += [([], []) for _ in range(some.count)]
        for k, owner in enumerate(some.numbers(trace.ops)):
            if owner is not None and trace.ops[k].phase is not Phase.STEP and trace.ops[k].lane is not Lane.COMM:
                inside[base + owner][trace.ops[k].phase is Phase.BACKWARD].append(k)
    found: list[_Unit] = []
    for first, last, sends in sent_runs(plan, len(inside)):
        forward, backward = (sorted(k for block in inside[first : last + 1] for k in block[way]) for way in (0, 1))
        if forward and backward:
            found.append(_Unit(forward, backward, sends))
    return sorted(found, key=lambda unit: unit.forward[0])


def _saved(trace: Trace, known: dict[int, Life], unit: _Unit, least: int, *, made_inside: bool) -> dict[int, int]:
    """What a unit's backward pass reads of the forward pass, in the order of its first use there.

    Each with the op after which it is copied: no op of the unit changes it any more.
    """
    inside, later = set(unit.forward), set(unit.backward)
    found: dict[int, int] = {}
    for i in {i for k in unit.backward for i in (*trace.ops[k].reads, *trace.ops[k].frees)}:
        life, storage = known[i], trace.storages[i]
        if i in trace.pinned or storage.nbytes < least or not storage.saved or not 0 <= life.made <= unit.forward[-1]:
            continue
        if not back_uses(storage, life, later) or not (made_inside or life.made not in inside):
            continue
        found[i] = next((k for k in life.uses if k in inside), unit.forward[0])
    writes = {i: k for k in unit.forward for i in trace.ops[k].writes}
    found = {i: max(k, writes.get(i, -1)) for i, k in found.items()}
    when = {i: _when_saved(trace, known[i], i, k) for i, k in found.items()}
    return {i: found[i] for i in sorted(found, key=lambda i: (when[i][0], known[i].made in inside, when[i][1], i))}


def _when_saved(trace: Trace, life: Life, i: int, k: int) -> tuple[int, int]:
    """The op that saves a storage, `k` but for a cast, which saves nothing; and where among its operands it stands."""
    if life.made == k and trace.ops[k].name == _CAST:
        k = next((use for use in life.uses if use > k), k)
    reads = trace.ops[k].reads
    return k, reads.index(i) if i in reads else len(reads)


def _other_uses(life: Life, i: int, reads: dict[int, int], saved: Sequence[Container[int]]) -> Iterable[int]:
    """Ops that use the storage itself, and no copy that came back."""
    return [-1, *(use for use in life.uses if use not in reads or i not in saved[reads[use]])]


def _reads(trace: Trace, known: dict[int, Life], backward: Sequence[int], ids: Iterable[int]) -> list[int]:
    later = set(backward)
    return [k for i in ids for k in back_uses(trace.storages[i], known[i], later)]
