"""A plan's price: seconds and bytes of one optimizer step on a cluster, what they are made of and how sure they are.

    step_seconds = first micro-batch, the others, gradients and optimizer (no pipeline), or the pipeline's last rank
    breakdown    = compute  the GPU's arithmetic units bound the op      memory    its memory does
                   communication  exposed, nothing else ran              bubble    a stage waits for another
                   host     the GPU waits for the CPU to issue ops       these five add up to the step

Flops are the model's, as recorded: recomputation costs time but counts nothing, attention counts whole (as PaLM's MFU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dnnmem.estimator.allocator_settings import AllocatorSettings
from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.local_step import LocalStep, local_step
from dnnmem.estimator.op_class import ARITHMETIC
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.rank_samples import ring_ranks
from dnnmem.estimator.replay import ReplayResult
from dnnmem.estimator.stage_memory import StageMemory
from dnnmem.estimator.step_time import StepTime, time_step
from dnnmem.estimator.time_model import TimeModel, load
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.work import DTYPES
from dnnmem.estimator.worst_rank import worst_rank

NINE_OF_TEN = 1.645
"""Standard deviations of a normal distribution on each side that leave one in ten out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a plan costs on a cluster. Rates are per second of the whole cluster; bytes are the worst rank's."""

    plan: Plan
    """The choices."""
    cluster: Cluster
    """The machine."""
    step_seconds: float
    """One optimizer step."""
    interval_seconds: tuple[float, float]
    """Where nine of ten steps of this kind lie."""
    breakdown: Mapping[str, float]
    """Seconds of the slowest rank's step by what bounds it: `SHARES`; they add up to `step_seconds`."""
    classes: Mapping[str, float]
    """Busy seconds of the slowest rank's GPU by class of op, `communication` among them; lanes overlap."""
    lanes: Mapping[str, float]
    """Busy seconds of the slowest rank by lane: `compute`, `comm`, `to_host`, `to_device`, and the issuing `host`."""
    host_bound: bool
    """The CPU decides: without a calibration of the site the time is known to a factor of two only."""
    samples: int
    """Samples of a step, all ranks."""
    tokens: int | None
    """Tokens of a step where samples are sequences."""
    model_flops: int
    """Flops of a step, all ranks, recomputation left out."""
    mfu: float | None
    """`model_flops` over what the GPUs could do in that time in the step's element type; None if that is unknown."""
    usd_per_step: tuple[float, float] | None
    """At the cluster's prices, low and high; None if unknown."""
    joules_bound: float
    """Board power of all GPUs over the step: energy is not above it (hosts and network left out)."""
    peak_allocated_bytes: int | None
    """Of the caching allocator; None where it is not predicted."""
    peak_reserved_bytes: int | None
    """The same."""
    context_bytes: int | None
    """CUDA context, outside the allocator."""
    fits: bool | None
    """Reserved and context within what the GPU offers; None where one is unknown."""
    notes: tuple[str, ...]
    """What was assumed."""

    @property
    def bound(self) -> str:
        """What most of the step waits for."""
        return max(self.breakdown, key=lambda share: self.breakdown[share])

    @property
    def usd_per_billion_tokens(self) -> tuple[float, float] | None:
        """`usd_per_step` by the tokens of a step, low and high; None if either is unknown."""
        if self.usd_per_step is None or not self.tokens:
            return None
        low, high = self.usd_per_step
        return low * 1e9 / self.tokens, high * 1e9 / self.tokens

    def per_second(self, count: int | None) -> float | None:
        """`count` of a step, such as `samples`, by its seconds; None if either is unknown or 0."""
        return count / self.step_seconds if count and self.step_seconds else None


def estimate(trace: Trace, plan: Plan, cluster: Cluster, model: TimeModel | None = None) -> Estimate:
    """The price of `trace`'s step run by `plan` on `cluster`.

    Raises `UsageError` for a plan that contradicts itself, the trace or the cluster, `UnsupportedError` for what is not
    predicted yet.
    """
    return price(local_step(trace, plan, cluster), model or load(cluster.device))


def price(
    step: LocalStep,
    model: TimeModel,
    *,
    memory: bool = True,
    settings: AllocatorSettings | None = None,
    known: StageMemory | None = None,
    places: Sequence[tuple[Cluster, TimeModel]] = (),
) -> Estimate:
    """The price of a prepared step by the rates of `model`; `memory` False leaves the bytes out.

    `settings` are those of PyTorch's allocator; None = its defaults. `known`: what `worst_rank` gave. `places`:
    where each chunk runs, where GPUs are unlike.
    """
    timed = time_step(step, model, places)
    plan, cluster, recorded = step.plan, step.cluster, step.recorded
    micro = plan.batch.accumulation * plan.mesh.data_ranks
    samples = int(recorded.batch.get("batch_size", 1)) * micro
    length = recorded.batch.get("seq_len")
    flops = step.model_flops * micro
    peak = _peak_rate(step)
    gpus = plan.mesh.world_size
    stage = known or (worst_rank(step, settings) if memory else None)
    held = stage.held if stage else None
    utilization = flops / (timed.seconds * gpus * peak) if peak and timed.seconds else None
    prices, hours = cluster.price_usd_per_h, timed.seconds / 3600 * gpus
    return Estimate(
        plan=plan,
        cluster=cluster,
        step_seconds=timed.seconds,
        interval_seconds=_interval(timed, model),
        breakdown=timed.breakdown,
        classes=timed.classes,
        lanes=timed.lanes,
        host_bound=timed.breakdown["host"] > timed.seconds / 4,
        samples=samples,
        tokens=samples * int(length) if length else None,
        model_flops=flops,
        mfu=utilization,
        usd_per_step=prices and (prices[0] * hours, prices[1] * hours),
        joules_bound=cluster.device.power_watts * gpus * timed.seconds,
        peak_allocated_bytes=held.peak_allocated_bytes if held else None,
        peak_reserved_bytes=held.peak_reserved_bytes if held else None,
        context_bytes=cluster.device.context_bytes,
        fits=fits_on(held, cluster),
        notes=(*step.local.origin.notes, *_notes(step, stage, utilization)),
    )


def _interval(timed: StepTime, model: TimeModel) -> tuple[float, float]:
    """Kinds of work err independently: their log deviations, weighted by their shares of the step, add in squares.

    To them comes what a step errs by itself, whatever it is made of.
    """
    parts = by_kind(timed.classes, timed.breakdown)
    total = sum(parts.values()) or 1.0
    variance = model.spread["step"] ** 2
    variance += sum((seconds / total * model.spread[kind]) ** 2 for kind, seconds in parts.items())
    factor = math.exp(NINE_OF_TEN * math.sqrt(variance))
    return timed.seconds / factor, timed.seconds * factor


def by_kind(classes: Mapping[str, float], breakdown: Mapping[str, float]) -> dict[str, float]:
    """Seconds of a step by the kinds of work that `TimeModel.spread` tells the errors of."""
    arithmetic = sum(classes.get(kind.label, 0.0) for kind in ARITHMETIC)
    return {
        "arithmetic": arithmetic + breakdown["bubble"],
        "traffic": sum(classes.values()) - arithmetic - classes.get("communication", 0.0),
        "communication": breakdown["communication"],
        "host": breakdown["host"],
    }


def fits_on(held: ReplayResult | None, cluster: Cluster) -> bool | None:
    """Whether what a rank reserved fits beside its context; None if one of them is unknown."""
    if held is None or cluster.device.context_bytes is None:
        return None
    return held.peak_reserved_bytes + cluster.device.context_bytes <= cluster.device.usable_bytes


def _peak_rate(step: LocalStep) -> float | None:
    """Flops per second of one GPU in the type that most flops of the planned step run in; None if there are none."""
    flops = sum(np.bincount(chunk.work.dtype, chunk.work.flops, len(DTYPES)) for chunk in step.chunks)
    rates = step.cluster.device.flops_per_s
    return rates.get(DTYPES[int(np.argmax(flops))], rates["float32"]) if np.any(flops) else None


def _notes(step: LocalStep, stage: StageMemory | None, mfu: float | None) -> list[str]:
    notes = []
    if mfu is not None and mfu > 1 and any(op.masked_flops for op in step.recorded.ops):
        notes.append("MFU counts attention whole, as PaLM does; causal kernels skip half of it: it may exceed 100 %.")
    mesh = step.plan.mesh
    if stage is not None and mesh.pp > 1:
        number = stage.rank * mesh.pp // mesh.world_size
        notes.append(f"Memory is that of pipeline stage {number}, which reserves most.")
    if stage is not None and len(ring_ranks(step.plan)) > 1:
        notes.append(f"Memory is that of rank {stage.rank}, which reserves most of those whose parts of a ring differ.")
    recorded, gpu = step.recorded.origin.gpu, step.cluster.device.name
    if recorded not in (None, gpu):
        notes.append(f"The step was recorded with the kernels of {recorded}, which may not be those of {gpu}.")
    if recorded is None:
        notes.append("The step was recorded with a CPU's operators; record it with --gpu for those of a GPU.")
    return notes
