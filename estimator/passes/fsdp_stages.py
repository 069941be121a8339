"""FSDP2 in a pipeline's stage, as PyTorch's schedules drive it: nothing is dropped after a backward pass, nothing sent.

    micro-batch    gather what is not whole, forward, drop (zero3) | gather again, backward: whole gradients are summed
    end of step    for each group, the root first: drop its parameters, reduce its gradients | update

So parameters that a backward pass has gathered are whole until the forward pass of the next micro-batch drops them
(torch/distributed/pipelining/stage.py, `backward_maybe_with_nosync` and `perform_reduce_grad`). Schedules of several
chunks gather whole chunks besides, up to three ahead (`_add_unshard_reshard` of schedules.py beside it).
"""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.estimator.passes.draft import Draft, made_storage
from dnnmem.estimator.passes.fsdp_groups import Group
from dnnmem.estimator.passes.fsdp_parts import SCATTER_STREAM
from dnnmem.estimator.passes.update import in_type
from dnnmem.estimator.schedules.grid import Step
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like

Owner = tuple[tuple[str, ...], str]
"""A parameter's module and its name there."""
ZERO_GRAD = "dnnmem.zero_grad"
"""Drops gradients after the update, where micro-batches have added to them."""
_ADD = "aten.add_.Tensor"
_AHEAD = 3
"""Chunks that are whole at a time (`max_active_stages`)."""
REDUCTIONS = ("dnnmem.copy_in.dp_shard", "dnnmem.reduce_scatter.", "dnnmem.all_reduce.dp_replicate")
"""What the names of ops begin with that reduce a stage's gradients."""


def in_order(groups: Sequence[Group]) -> list[Group]:
    """`groups`, in the order of forward passes, as their hooks run at the end of a step: the root's first."""
    return sorted(groups, key=lambda g: not g.root)


def summed_apart(draft: Draft, whole: int, dtype: str | None, k: int) -> int:
    """The sum of a `whole` gradient in the type that is sent, to which each micro-batch adds after op `k`.

    Gradients of a micro-batch stay until then; the first one's is cast, and others are added (`FSDPParam`,
    `to_accumulated_grad_if_needed`).
    """
    apart = draft.add(in_type(draft.storages[whole], dtype))
    term = whole
    for n, op in enumerate(draft.ops):
        if op.name == _ADD and op.writes == (whole,) and len(op.reads) == 2:
            term = op.reads[1]
            draft.ops[n] = op_like(op, reads=(term,), writes=(), events=(), moved_bytes=0)
            draft.ops[n - 1] = _without(draft.ops[n - 1], whole)
    ours, its = draft.storages[apart], draft.storages[term]
    events = (Event(ours.nbytes, 0, apart), Event(-its.nbytes, 0, term))
    draft.after.setdefault(k, []).append(
        Op(
            name="dnnmem.accumulate.dp_shard", module=draft.ops[k].module, phase=Phase.BACKWARD, reads=(term,),
            writes=(apart,), events=events, moved_bytes=ours.nbytes + its.nbytes,
        )
    )  # fmt: skip
    return apart


def _without(op: Op, storage: int) -> Op:
    return op_like(op, events=tuple(e for e in op.events if e.storage != storage))


def drop_at_end(draft: Draft, trace: Trace, merged: set[int]) -> None:
    """Drop the `merged` gradients with the step where nothing else does: sums of micro-batches would have stayed."""
    freed = {e.storage for op in draft.ops for e in op.events if e.nbytes < 0}
    left = [i for i in draft.storages if i in merged and i not in freed and draft.storages[i].nbytes]
    if not left:
        return
    frees = tuple(Event(-draft.storages[i].nbytes, SCATTER_STREAM, i) for i in left)
    last = len(trace.ops) - 1
    if trace.ops[last].phase is Phase.STEP:
        draft.after.setdefault(last, []).append(Op(name=ZERO_GRAD, phase=Phase.STEP, events=frees))
    else:
        draft.ops[last] = op_like(draft.ops[last], events=(*draft.ops[last].events, *frees))


def fetches(steps: Sequence[Step]) -> list[tuple[list[int], list[int]]]:
    """Before each step, the chunks that are dropped and those that are gathered: the next three that there is work for.

    >>> fetches([Step("F", 0, c) for c in (0, 1, 2, 3)])
    [([], [0, 1, 2]), ([0], [3]), ([1], []), ([2], [])]
    """
    active: list[int] = []
    found = []
    for n in range(len(steps)):
        wanted = list(dict.fromkeys(step.chunk for step in steps[n:]))[:_AHEAD]
        gone = [c for c in active if c not in wanted]
        new = [c for c in wanted if c not in active]
        active = [*(c for c in active if c in wanted), *new]
        found.append((gone, new))
    return found


def gathers(chunk: Trace) -> list[tuple[Storage, Op]]:
    """The buffer of each group that a forward pass gathers, and the copies out of it."""
    found = []
    for op in chunk.ops:
        if op.phase is Phase.FORWARD and op.name.startswith("dnnmem.copy_out."):
            nbytes = sum(chunk.storages[i].nbytes for i in op.writes)
            found.append((made_storage(nbytes, Kind.COMM, "all_gather"), op))
    return found


def is_reduction(op: Op) -> bool:
    """True for an op that reduces a stage's gradients, once a step."""
    return op.phase is Phase.STEP and op.name.startswith(REDUCTIONS)


def whole_parameters(chunk: Trace) -> dict[int, Owner]:
    """Storages of gathered parameters that are not dropped as soon as they are used, and whose they are."""
    params = {(s.module, s.name) for s in chunk.storages.values() if s.kind is Kind.PARAM}
    whole = {s.id: (s.module, s.name) for s in chunk.storages.values() if s.kind is Kind.COMM}
    late = any(e.storage in whole and e.nbytes < 0 for op in chunk.ops if op.phase is Phase.STEP for e in op.events)
    return {i: owner for i, owner in whole.items() if owner in params} if late else {}


def sums_apart(chunk: Trace) -> set[int]:
    """Gradients that micro-batches add to in another type than their own, until what reduces them frees them."""
    return {i for op in chunk.ops if op.name == "dnnmem.accumulate.dp_shard" for i in op.writes}


def gathered_by(op: Op, chunk: Trace) -> set[Owner]:
    """The parameters that an op gathers, or copies out of the buffer that they were gathered in."""
    if op.name.startswith("dnnmem.all_gather."):
        mine = (chunk.storages[i] for i in op.reads)
        return {(s.module, s.name) for s in mine if s.kind is Kind.PARAM}
    if op.name.startswith("dnnmem.copy_out."):
        return {(s.module, s.name) for s in (chunk.storages[i] for i in op.writes)}
    return set()
