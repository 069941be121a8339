"""One rank's share of a planned step, cut into the segments that are timed: what `estimate` prices, free of any rate.

    trace --passes(plan)--> the ops of a micro-batch on a rank, as chunks: one, or those of the pipeline's stages
    chunk:   forward | backward | sync | step         sync: gradients, sent once an optimizer step, not each micro-batch

Preparing is the slow half (passes walk the ops); pricing the result with other rates costs little, so that a fit and a
what-if repeat only that.

>>> from dnnmem.estimator.cluster import find_cluster
>>> local = local_step(Trace(ops=(), storages={}), Plan(), find_cluster("h100:1"))
>>> len(local.chunks), local.chunks[0].forward.size
(1, 0)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.collectives import Group, group_of
from dnnmem.estimator.context_ranks import from_context
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.gradient_sizes import GRADIENTS
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan, check
from dnnmem.estimator.repeat import repeated_flops
from dnnmem.estimator.trace import Lane, Op, Phase, Trace
from dnnmem.estimator.work import Work, work_of

PREFIX = "dnnmem."
"""What the names of the ops that passes insert begin with: `dnnmem.all_gather.dp_shard`."""
_DATA_AXES = ("dp", "dp_shard", "dp_replicate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A collective of a chunk."""

    index: int
    """Of its op in the chunk's trace."""
    kind: str
    """`all_gather`, ..."""
    axis: str
    """Axis of the mesh."""
    nbytes: int
    """Bytes of the whole message on a rank."""
    group: Group
    """Who takes part."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """The ops of one pipeline chunk (all of the model without pipelining) on one rank, for one micro-batch."""

    trace: Trace
    """Forward, backward and optimizer step."""
    work: Work
    """What its ops ask of a GPU."""
    messages: tuple[Message, ...]
    """Its collectives."""
    passed: tuple[Message, ...]
    """Those of them that carry a micro-batch to another stage, at the schedule's times."""
    forward: npt.NDArray[np.intp]
    """Indices of its forward ops, `passed` left out."""
    backward: npt.NDArray[np.intp]
    """Indices of its backward ops, `passed` and `sync` left out."""
    sync: npt.NDArray[np.intp]
    """Indices of the messages that are sent once an optimizer step, and of what makes and reads them."""
    step: npt.NDArray[np.intp]
    """Indices of the optimizer's ops, and what is sent for them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalStep:
    """A planned step, ready to be priced."""

    plan: Plan
    """The choices."""
    cluster: Cluster
    """The machine."""
    recorded: Trace
    """The step as recorded."""
    model_flops: int
    """Of a micro-batch of the whole model, recomputation left out."""
    local: Trace
    """The step of a rank; of the first chunk, where there are several."""
    chunks: tuple[Chunk, ...]
    """In the order of the model; those that do the same may be one object."""
    of_rank: Callable[[int], Sequence[Trace]] | None = None
    """The chunks of another rank of the first stage; None = nobody asks for them."""


def local_step(trace: Trace, plan: Plan, cluster: Cluster, layers: int | None = None) -> LocalStep:
    """Rewrite `trace` by `plan` for one rank of `cluster`, as a model of `layers` blocks (None: as recorded).

    Raises `UsageError` for a plan that contradicts itself, the trace or the cluster, `UnsupportedError` for what is not
    predicted yet.
    """
    check(plan)
    check_fits(plan, cluster)
    flops = sum(op.flops for op in trace.ops) if layers is None else repeated_flops(trace, layers)
    step = step_of(rewrite(trace, plan, cluster, layers), trace, plan, cluster, flops)
    return replace(step, of_rank=partial(rewrite, trace, plan, cluster, layers))


def step_of(parts: Sequence[Trace], trace: Trace, plan: Plan, cluster: Cluster, flops: int) -> LocalStep:
    """The step whose passes have made `parts` of the recorded `trace`, a micro-batch of which has so many flops."""
    done = {id(part): _chunk(part, plan, cluster) for part in {id(part): part for part in parts}.values()}
    chunks = tuple(done[id(part)] for part in parts)
    return LocalStep(plan=plan, cluster=cluster, recorded=trace, model_flops=flops, local=parts[0], chunks=chunks)


def check_fits(plan: Plan, cluster: Cluster) -> None:
    """Raise `UsageError` for a plan of more ranks than there are GPUs, `UnsupportedError` for an axis not predicted."""
    mesh = plan.mesh
    if mesh.world_size > cluster.gpus:
        raise UsageError(
            f"dp_replicate {mesh.dp_replicate} * dp_shard {mesh.dp_shard} * cp {mesh.cp} * tp {mesh.tp} * pp {mesh.pp} "
            f"= {mesh.world_size} ranks, but {cluster.name} has {cluster.gpus} GPUs",
            hint=f"lower a degree, or give a larger cluster: --cluster {cluster.device.name}:{mesh.world_size}",
        )


def _chunk(trace: Trace, plan: Plan, cluster: Cluster) -> Chunk:
    once = from_context(plan).sharding.strategy in ("ddp", "zero1")
    found = [_message(i, op, plan, cluster) for i, op in enumerate(trace.ops) if op.lane is Lane.COMM]
    messages = tuple(message for message in found if message is not None)
    sync = {m.index for m in messages if once and m.axis in _DATA_AXES and trace.ops[m.index].phase is Phase.BACKWARD}
    sync |= {i for i, op in enumerate(trace.ops) if op.module == GRADIENTS and op.phase is Phase.BACKWARD}
    sends = (m for m in messages if m.kind == "send" and m.axis == "pp")
    passed = tuple(m for m in sends if trace.ops[m.index].phase is not Phase.STEP)
    elsewhere = sync | {m.index for m in passed}
    left = [(i, op.phase) for i, op in enumerate(trace.ops) if i not in elsewhere]
    by_phase = {phase: [i for i, where in left if where is phase] for phase in Phase}
    return Chunk(
        trace=trace,
        work=work_of(trace),
        messages=messages,
        passed=passed,
        forward=np.array(by_phase[Phase.FORWARD], np.intp),
        backward=np.array(by_phase[Phase.BACKWARD], np.intp),
        sync=np.array(sorted(sync), np.intp),
        step=np.array(by_phase[Phase.STEP], np.intp),
    )


def _message(index: int, op: Op, plan: Plan, cluster: Cluster) -> Message | None:
    if not op.name.startswith(PREFIX):
        return None
    _, kind, axis = op.name.split(".", 2)
    if kind == "recv":  # the other end of a send
        return None
    group = group_of(plan.mesh if axis == "cp" else from_context(plan).mesh, axis, cluster)
    return Message(index=index, kind=kind, axis=axis, nbytes=op.moved_bytes, group=group)
