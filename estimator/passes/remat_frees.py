"""When what a recomputation made, or was handed, goes: with the ops of the copy that the program runs again.

    forward   a = f(x)   b = kept(a)   del a   c = g(b)   ...          again   a' = f(x)   free a'   c' = g(b)   free b

An op that is kept is not done again, but the program goes on behind it as it did before: what it let go of there goes
with the op in front. Where the recomputation stops early, all that the program still holds goes at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from dnnmem.estimator.passes.draft import Draft, Life
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

_CAST = "aten._to_copy.default"
_AFTERWARDS = ("aten.sum.dim_IntList", _CAST)
"""What autograd does to a node's gradients once they are made: to the shape of a bias, to the type of a weight."""


def until(again: Sequence[int], freed: int, stop: int) -> int:
    """Where in `again` the program lets go of what it frees at an op that is not done again: the last one before it.

    What it would have freed behind the `stop` goes with all that it holds, when the recomputation ends.
    """
    return bisect_right(again, freed) - 1 if freed <= stop else len(again) - 1


def free_with_clone(draft: Draft, i: int, known: dict[int, Life], start: int, at: int) -> None:
    """Free what was kept with one of the ops before op `start`, counted from their end, and not where it was."""
    draft.unfree(known[i].freed, i)
    clones = draft.before[start]
    event = Event(-draft.storages[i].nbytes, 0, i)
    clones[at] = op_like(clones[at], events=(*clones[at].events, event))


def free_before_sum(draft: Draft, freed: int, storage: int) -> None:
    """Gradients are cast and summed to what they belong to while what their node saved still lives.

    What was computed again is gone by then.
    """
    at = freed
    while at > 0 and draft.ops[at].name in _AFTERWARDS and storage not in draft.ops[at].reads:
        at -= 1
    if at < freed:
        draft.unfree(freed, storage)
        draft.free(at, storage)


def let_go(draft: Draft, i: int, k: int) -> None:
    """Free at op `k` what is not kept for the backward pass any more.

    What `k` reads was handed to the innermost call, which lets go before those around it do.
    """
    draft.free(k, i)
    draft.storages[i] = storage_like(draft.storages[i], kind=Kind.TEMP, saved=False)
    op, used = draft.ops[k], {*draft.trace.ops[k].reads, *draft.trace.ops[k].writes}
    if i in used:
        outer = [e for e in op.events if e.nbytes < 0 <= e.storage and e.storage not in used]
        draft.ops[k] = op_like(op, events=(*(e for e in op.events if e not in outer), *outer))


def hold_inputs(draft: Draft, forward: Sequence[int]) -> None:
    """A run within another is open, in the forward pass too, from its first block to its last: what enters it stays."""
    made = {e.storage for k in forward for e in draft.trace.ops[k].events if e.nbytes > 0}
    read = dict.fromkeys(i for k in forward for i in draft.trace.ops[k].reads if i not in made)
    op = draft.ops[forward[-1]]
    draft.ops[forward[-1]] = op_like(op, releases=(*op.releases, *read))


def model_end(trace: Trace) -> int:
    """The last op of the model's forward pass, where autocast drops its copies: what it returns is cast after that."""
    forward = (k for k, op in enumerate(trace.ops) if op.phase is Phase.FORWARD and not _is_after(op))
    return max(forward, default=-1)


def _is_after(op: Op) -> bool:
    return op.module == ("<loss>",) or (op.name == _CAST and not op.module)


def is_cast(trace: Trace, made: int) -> bool:
    """True for an op that copies a parameter to another type: autocast keeps the copy until its context ends."""
    op = trace.ops[made]
    return op.name == _CAST and all(_is_parameter(trace.storages[i]) for i in op.reads)


def _is_parameter(s: Storage) -> bool:
    """A parameter, or what ranks have gathered of one."""
    return s.kind is Kind.PARAM or (s.kind is Kind.COMM and bool(s.module) and not s.name.startswith("aten."))
