"""A micro-batch's step as the passes of the model leave it: what many plans of a search share.

core    op by op, of few blocks where blocks are alike    ->    runs of ops, whole; what rests; what must be computed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from dnnmem.estimator.block_list import main_list
from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.coarsen import NAME, Runs, live_peak, rounded
from dnnmem.estimator.context_ranks import from_context
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.local_step import Chunk, LocalStep
from dnnmem.estimator.passes import offload
from dnnmem.estimator.passes.offload_optimizer import HOST_BYTES_PER_S
from dnnmem.estimator.plan import Pipeline, Plan
from dnnmem.estimator.planners.chain import Chain, chain_of
from dnnmem.estimator.repeat import repeat
from dnnmem.estimator.schedules import UPDATES_EACH
from dnnmem.estimator.time_model import TimeModel
from dnnmem.estimator.trace import Kind, Lane, Phase, Trace
from dnnmem.estimator.work import Work, work_of

STATES = frozenset({Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER})
"""What lives between steps."""
_OTHERS = frozenset(Kind) - STATES - {Kind.COMM}
OPTIMIZER = frozenset({Kind.OPTIMIZER})
HOST_SHARE = 4
"""No host is taken to have more memory than so many times its GPUs': a DGX H100 has 3.2 times (2 TiB for 8 x 80 GB), a
p4d.24xlarge 3.6."""
ALL_PARTS = ("zero2", "zero3")
"""Strategies that may split all that rests between steps."""
EVENLY = ("all", "conv")
"""Activations that go to the host from all blocks alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of a step and bytes of the allocator, or bounds of both from below."""

    seconds: float
    """Of one optimizer step."""
    peak_bytes: int
    """What is allocated at the peak; reserved, where the price is exact."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rates:
    """What prices steps in runs."""

    cluster: Cluster
    """The machine."""
    model: TimeModel
    """Its rates."""
    runs: Runs
    """Costs of runs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spread:
    """A micro-batch on one tensor-parallel group, by blocks: no rank of a pipeline does its part in less."""

    forward: tuple[float, ...]
    """Seconds until the forward pass begins block 0, 1, ...; the last number: until it is over."""
    backward: tuple[float, ...]
    """Seconds of the backward pass from its begin until block 0, 1, ... is done; then 0, before it begins."""
    inside: Mapping[Kind, int]
    """Bytes of blocks that live between steps, by kind, each taken to have what the least one has."""

    @property
    def seconds(self) -> float:
        """Of both passes."""
        return self.forward[-1] + self.backward[0]


@dataclass(slots=True, kw_only=True, eq=False)
class Core:
    """A micro-batch's step as the passes of the model leave it."""

    trace: Trace
    """Op by op; of few blocks if `layers`."""
    layers: int | None
    """Blocks that it is to be repeated to; None = it is whole."""
    runs: Trace | None
    """In runs, whole, once they were needed."""
    few_runs: Trace
    """In runs, of as many blocks as `trace` has."""
    micro_seconds: float
    """Of the compute lane, forward and backward."""
    update_seconds: float
    """Of the compute lane, the update."""
    states: Mapping[Kind, int]
    """Bytes that live between steps, by kind."""
    others_bytes: int
    """Largest sum of what is neither state nor message, before the update."""
    gradient_bytes: int
    """Gradients of all parameters, as they are made."""
    gathered_bytes: tuple[int, int]
    """Parameters, and those of them that lie in blocks, the last one left out."""
    whole: Trace | None = None
    """Op by op and whole, once it was needed."""
    chain: Chain | None = None
    """In stages, once it was needed."""
    saved: tuple[int, int] | None = None
    """What blocks keep for their backward passes, the least and the most of them, once that was needed."""
    spread: Spread | None = None
    """Where its seconds and states lie, once that was needed."""
    chunks: dict[tuple[int, Pipeline], list[Trace]] = field(default_factory=dict)
    """Of a pipeline, op by op, by its stages and how they take turns."""
    coarse: dict[tuple[int, Pipeline], list[Trace]] = field(default_factory=dict)
    """The same in runs."""
    others: dict[tuple[int, Pipeline, int], int] = field(default_factory=dict)
    """What the ranks of a pipeline hold besides states, by its micro-batches too."""
    few: tuple[tuple[int, Trace], tuple[int, Trace]] | None = None
    """With as many blocks as `trace` has, and one more, once they were needed."""
    few_in_runs: tuple[tuple[int, Trace], tuple[int, Trace]] | None = None
    """The same in runs."""
    sent_bytes: float | None = None
    """What all activations that go to the host have, once it was needed."""


def core_of(
    trace: Trace, layers: int | None, few: Trace, costs: Runs, seconds_of: Callable[[Work], Sequence[float]]
) -> Core:
    """The core of a rewritten step, with its runs, given for as many blocks as it has; `seconds_of` prices ops.

    Sums of the passes are drawn out from as many blocks as there are, and one more, to all of them.
    """
    mine = _sums(few, costs, seconds_of)
    core = Core(
        trace=trace, layers=layers, few_runs=few, runs=few if layers is None else None, micro_seconds=mine.micro,
        update_seconds=mine.update, states=mine.states, others_bytes=mine.others, gradient_bytes=mine.gradients,
        gathered_bytes=(mine.states[Kind.PARAM], mine.blocks),
    )  # fmt: skip
    if layers is None:
        return core
    (some, _), (_, longer) = few_in_runs(core)
    more, left = _sums(longer, costs, seconds_of), layers - some
    core.micro_seconds += left * (more.micro - mine.micro)
    core.update_seconds += left * (more.moving - mine.moving)
    core.others_bytes += left * (more.others - mine.others)
    core.states = {kind: nbytes + left * (more.states[kind] - nbytes) for kind, nbytes in mine.states.items()}
    core.gradient_bytes += left * (more.gradients - mine.gradients)
    core.gathered_bytes = core.states[Kind.PARAM], mine.blocks + left * (more.blocks - mine.blocks)
    return core


class _Sums(NamedTuple):
    micro: float
    update: float
    moving: float  # the same without starting kernels, of which each takes so many tensors
    states: dict[Kind, int]
    others: int
    gradients: int
    blocks: int  # parameters of all blocks but one


def _sums(runs: Trace, costs: Runs, seconds_of: Callable[[Work], Sequence[float]]) -> _Sums:
    step = tuple(op for op in runs.ops if op.phase is Phase.STEP)
    passes = tuple(op for op in runs.ops if op.phase is not Phase.STEP)  # what an update makes is split with it
    work = work_of(replace(runs, ops=step))
    moving = seconds_of(replace(work, kernels=np.zeros_like(work.kernels)))
    return _Sums(
        micro=sum(run_seconds(runs, costs)), update=sum(seconds_of(work)), moving=sum(moving),
        states=resting(runs), others=live_peak(replace(runs, ops=passes), _OTHERS), gradients=sum(_gradients(runs)),
        blocks=sum(_of_blocks(runs)),
    )  # fmt: skip


def _gradients(runs: Trace) -> Iterable[int]:
    """Bytes of each parameter's gradient, however often it is made."""
    made = (s for s in runs.storages.values() if s.kind is Kind.GRAD)
    return {(s.module, s.name.split(".")[0]): s.nbytes for s in made}.values()


def _of_blocks(runs: Trace) -> Iterator[int]:
    """Bytes of each parameter in a block but the first."""
    blocks = main_list(runs)
    for s in runs.storages.values():
        if s.kind is Kind.PARAM and blocks is not None and blocks.index(s.module):
            yield s.nbytes


def whole_runs(core: Core) -> Trace:
    """A core in runs, with all blocks."""
    if core.runs is None:
        core.runs = core.few_runs if core.layers is None else repeat(core.few_runs, core.layers)
    return core.runs


def parts_of(plan: Plan) -> dict[Kind, int]:
    """In how many parts ranks hold states at the peak, by kind: zero2 has gathered all parameters then."""
    strategy, merged = plan.sharding.strategy, from_context(plan)
    split = STATES if strategy in ALL_PARTS else OPTIMIZER if strategy == "zero1" else frozenset[Kind]()
    if strategy == "zero2" and plan.precision.param is None:
        split -= {Kind.PARAM}
    return {kind: merged.mesh.dp_shard if kind in split else 1 for kind in STATES}


def held_shares(plan: Plan) -> tuple[float, float, float, float]:
    """What share of parameters, pinned gradients and states a rank holds on the GPU; and of all gradients at their end.

    A pipeline's rank has added to whole gradients until its last micro-batch is over; where parameters are split they
    are whole then too, of one chunk at least: the others' may have been sent by then.
    """
    parts, mesh, offload = parts_of(plan), plan.mesh, plan.offload
    there, kept = not offload.parameters, not plan.optimizer.in_backward
    param, states = there / parts[Kind.PARAM], (not offload.optimizer) / parts[Kind.OPTIMIZER]
    if mesh.pp == 1:
        return param, there * kept / parts[Kind.GRAD], states, 0.0
    of_one = 1 / plan.pipeline.chunks
    if plan.splits_parameters:
        whole = 1.0 if plan.batch.accumulation >= 2 * mesh.pp else of_one
        return param + of_one, 0.0, states, whole * kept
    return param, 0.0, states, float(kept and plan.pipeline.schedule not in UPDATES_EACH)


def held_bytes(core: Core, plan: Plan) -> int:
    """The same in bytes, of a stage on average."""
    states = (core.states[Kind.PARAM], core.states[Kind.GRAD], core.states[Kind.OPTIMIZER])
    shares = zip(held_shares(plan), (*states, core.gradient_bytes), strict=True)
    return int(sum(share * nbytes for share, nbytes in shares) / plan.mesh.pp)


def few_of(core: Core) -> tuple[tuple[int, Trace], tuple[int, Trace]]:
    """A core of few blocks with as many as it has, and with one more, each after its number of blocks."""
    if core.few is None:
        core.few = _and_one_more(core.trace)
    return core.few


def saved_by_blocks(core: Core, runs: Runs) -> tuple[int, int]:
    """What blocks keep for their backward passes, the least and the most of them; 0 where that is not known."""
    if core.saved is None:
        with suppress(UnsupportedError):
            stages = chain_of(core.few_runs, run_seconds(core.few_runs, runs)).stages
            found = [stage.saved_bytes for stage in stages if stage.block is not None]
            found = found[:-1] or found  # what the last one makes, no block reads
            core.saved = min(found, default=0), max(found, default=0)
    return core.saved or (0, 0)


def few_in_runs(core: Core) -> tuple[tuple[int, Trace], tuple[int, Trace]]:
    """The same in runs."""
    if core.few_in_runs is None:
        core.few_in_runs = _and_one_more(core.few_runs)
    return core.few_in_runs


def _and_one_more(trace: Trace) -> tuple[tuple[int, Trace], tuple[int, Trace]]:
    blocks = main_list(trace)
    count = blocks.count if blocks else 0
    return (count, trace), (count + 1, repeat(trace, count + 1))


def sent_bytes(core: Core, plan: Plan) -> float:
    """What the activations of a micro-batch send to the host, at least."""
    if plan.offload.activations not in EVENLY or core.layers is None:
        return 0.0
    if core.sent_bytes is None:
        (some, few), (_, more) = few_of(core)
        first, second = (
            sum(op.moved_bytes for op in offload.apply(trace, plan).ops if op.lane is Lane.TO_HOST)
            for trace in (few, more)
        )
        core.sent_bytes = first + (core.layers - some) * (second - first)
    return core.sent_bytes


def check_host(core: Core, plan: Plan, cluster: Cluster) -> None:
    """Raise `UnsupportedError` for what no usual host can hold of a plan, its files aside."""
    parts, rests, sent = parts_of(plan), plan.offload, sent_bytes(core, plan)
    kept = 0.0 if rests.files else sent
    if rests.optimizer and not rests.disk:
        kept += core.states[Kind.OPTIMIZER] / (parts[Kind.OPTIMIZER] * plan.mesh.pp)
    if rests.parameters:
        kept += core.states[Kind.PARAM] / (parts[Kind.PARAM] * plan.mesh.pp)
    most = HOST_SHARE * cluster.device.memory_bytes
    if kept > most:
        raise UnsupportedError(
            f"more would rest on hosts than they have: at most {HOST_SHARE} times their GPUs' memory is expected, "
            f"{most / 2**30:.0f} GiB a GPU",
            hint="more GPUs, or recomputation instead",
        )


def resting(trace: Trace) -> dict[Kind, int]:
    """Bytes that live between steps, by kind."""
    states = dict.fromkeys(STATES, 0)
    for i in trace.pinned:
        storage = trace.storages[i]
        if storage.kind in states:
            states[storage.kind] += rounded(storage.nbytes)
    return states


def host_update_seconds(core: Core, cluster: Cluster) -> float:
    """Of an update on the host, which reads and writes all states."""
    return 2 * core.states[Kind.OPTIMIZER] * cluster.gpus_per_node / HOST_BYTES_PER_S


def run_seconds(trace: Trace, runs: Runs) -> list[float]:
    """The seconds of each op that is a run, 0 of the others."""
    return [runs.costs[op.name].seconds if op.name in runs.costs else 0.0 for op in trace.ops]


def with_costs(step: LocalStep, runs: Runs, model: TimeModel) -> LocalStep:
    """`step` with the seconds of its runs; what is left of the host's time goes to the next op."""
    known = {id(chunk): _with_costs(chunk, runs, model) for chunk in {id(c): c for c in step.chunks}.values()}
    return replace(step, chunks=tuple(known[id(chunk)] for chunk in step.chunks))


def _with_costs(chunk: Chunk, runs: Runs, model: TimeModel) -> Chunk:
    work = chunk.work
    measured, host = work.measured.copy(), work.host_ops.copy()
    left = 0.0
    for k, op in enumerate(chunk.trace.ops):
        before, left = left, 0.0
        if op.name.startswith(NAME):
            cost = runs.costs[op.name]
            measured[k] = cost.seconds
            host[k] = cost.issue / model.host_seconds
            left = cost.left / model.host_seconds
        host[k] += before
    return replace(chunk, work=replace(work, measured=measured, host_ops=host))
