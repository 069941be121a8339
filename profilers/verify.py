"""A plan really run: the target's step, applied and made on virtual GPUs, one rank of it; what its memory was.

Request + Plan  ->  python -m dnnmem.profilers.planned  on a virtual GPU, rank r of world_size  ->  Verified
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import DnnmemError, UnsupportedError
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import to_json
from dnnmem.estimator.rank_samples import samples_of
from dnnmem.estimator.report import Verified, VerifiedRank
from dnnmem.estimator.units import format_bytes
from dnnmem.profilers.ranks import ScriptRun, run_script
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import QUIET
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.script_result import OutOfMemory
from dnnmem.profilers.spread import spread
from dnnmem.profilers.verify_gradients import is_lossy, measured_error

STEPS = 3
"""Steps that are made where the request names no number."""

Job = tuple[Request, Plan]
"""What is to be verified."""


def verify(
    request: Request,
    plan: Plan,
    gpu: Device,
    *,
    ranks_per_node: int = 8,
    timeout_seconds: float | None = None,
    cache: Path | None = None,
    on_output: Callable[[str], None] = lambda _: None,
    gradients: bool = True,
    rank: int = 0,
) -> Verified:
    """Apply `plan` to the target of `request` and make its steps on a virtual `gpu`, as one rank of the plan's ranks.

    Args: `cache` keeps what the virtual GPU is built of; `on_output` gets each line that the run prints; `gradients`:
    measure on the CPU how far those of a plan that loses something are off.
    The last step counts; what a run dies of is in the result. Raises `UnsupportedError` where there is no virtual GPU.
    """
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        asked, planned = Path(name, "request.json"), Path(name, "plan.json")
        asked.write_text(request.to_json(), "utf-8")
        planned.write_text(json.dumps(to_json(plan)), "utf-8")
        script = ScriptRequest(
            script="dnnmem.profilers.planned", is_module=True, arguments=(str(asked), str(planned)),
            steps=request.steps or STEPS, timeout_seconds=timeout_seconds,
        )  # fmt: skip
        world = plan.mesh.world_size
        run = ScriptRun(
            request=script,
            gpu=gpu,
            ranks=(rank,) if world > 1 else None,
            world_size=world,
            ranks_per_node=ranks_per_node,
        )
        own = {"TMPDIR": name}  # files that the run leaves go too: it ends without a word to Python
        [result] = run_script(run, {**QUIET, **os.environ, **own}, cache=cache, on_output=on_output)
    memory = result.memory[0] if result.memory else None
    if result.outcome != "ran" or memory is None or not memory.steps:
        said = _out_of_memory(result.oom) if result.oom else result.message
        return Verified(device="virtual", outcome=result.outcome, message=said or f"the run {result.outcome}")
    peak = memory.steps[-1]
    return Verified(
        device="virtual", outcome="ran", peak_allocated_bytes=peak.allocated_bytes,
        peak_reserved_bytes=peak.reserved_bytes,
        gradient_error=measured_error(request, plan, {**QUIET, **os.environ}) if gradients and is_lossy(plan) else None,
    )  # fmt: skip


def _out_of_memory(oom: OutOfMemory) -> str:
    """Where, and how much was missing."""
    where = f"out of memory in step {oom.step} ({oom.phase}{f', {oom.module}' if oom.module else ''})"
    if oom.asked_bytes is None or oom.free_bytes is None:
        return f"{where}: {oom.message}"
    return f"{where}: {format_bytes(oom.asked_bytes)} were asked for, {format_bytes(oom.free_bytes)} were free"


def verify_many(
    jobs: Sequence[Job],
    gpu: Device,
    *,
    workers: int = 2,
    executor: str = "process",
    ranks_per_node: int = 8,
    timeout_seconds: float | None = None,
    cache: Path | None = None,
    shapes: Iterable[tuple[int, ...]] = (),
) -> Iterator[tuple[int, Verified]]:
    """Verify several plans at once; the index of each job and what came of it, in the order in which they are done.

    Of each plan those ranks run that `samples_of` names for parameters of these `shapes`. Args: `executor` is one of
    `spread.EXECUTORS`. Stop reading and what has not begun never does. Raises `UnsupportedError` where there is no
    virtual GPU, and what `spread` raises; other errors are in the results.
    """
    one = partial(
        _verify_job, gpu=gpu, ranks_per_node=ranks_per_node, timeout_seconds=timeout_seconds, cache=cache,
        shapes=tuple(shapes),
    )  # fmt: skip
    return spread(one, jobs, workers=workers, executor=executor)


def _verify_job(
    job: Job,
    *,
    gpu: Device,
    ranks_per_node: int,
    timeout_seconds: float | None,
    cache: Path | None,
    shapes: tuple[tuple[int, ...], ...],
) -> Verified:
    request, plan = job
    samples, found = samples_of(plan, shapes), list[tuple[int, Verified]]()
    for rank in samples.ranks:
        try:
            came = verify(
                request, plan, gpu, ranks_per_node=ranks_per_node, timeout_seconds=timeout_seconds, cache=cache,
                gradients=rank == samples.ranks[0], rank=rank,
            )  # fmt: skip
        except UnsupportedError:  # there is no virtual GPU: the next one cannot run either
            raise
        except DnnmemError as error:
            came = Verified(device="virtual", outcome="failed", message=error.message)
        if came.outcome != "ran":
            return replace(came, message=f"rank {rank}: {came.message}" if rank else came.message)
        found.append((rank, came))
    return together(found, samples.why)


def together(found: Sequence[tuple[int, Verified]], others: str) -> Verified:
    """What came of ranks that all ran: the peaks of the one that reserved most, and each of them."""
    _, worst = max(found, key=lambda one: one[1].peak_reserved_bytes or 0)
    ranks = tuple(
        VerifiedRank(rank=rank, peak_allocated_bytes=v.peak_allocated_bytes, peak_reserved_bytes=v.peak_reserved_bytes)
        for rank, v in found
    )
    return replace(worst, gradient_error=found[0][1].gradient_error, ranks=ranks, others=others)
