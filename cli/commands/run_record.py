"""The second run of a script: the first rank once more, its last step recorded, so that layers can be told apart.

Its peaks are not reported: recording changes a step a little. They explain those of the first run, as far as they go;
what stands in the way (a single step, a failure, a compiled model) becomes a note of the rank's result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.estimator.build import build_profile
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.profile import Measurement, Profile
from dnnmem.estimator.trace_file import load_trace, save_trace
from dnnmem.profilers.ranks import recorded_step, run_script

if TYPE_CHECKING:
    from dnnmem.cli.commands.run_job import RunJob
    from dnnmem.profilers.script_result import RankResult


def record(
    job: RunJob, results: tuple[RankResult, ...], base: Mapping[str, str], *, cache: Path | None
) -> tuple[tuple[RankResult, ...], Profile | None]:
    """The results, with a note where no step could be recorded, and the recorded step's profile."""
    first = results[0]
    if first.outcome != "ran" or first.device is None or not first.steps:
        return results, None
    if first.steps < 2:
        return _noted(
            results, "layers are not shown: a step is recorded after a first one, so --steps must be 2 or more"
        ), None
    request = replace(job.run.request, record=True, steps=first.steps)
    ranks = None if job.run.ranks is None else job.run.ranks[:1]
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        path = recorded_step(Path(name), first.rank)
        try:
            (recorded,) = run_script(replace(job.run, request=request, ranks=ranks), base, cache=cache, save=Path(name))
            if not path.exists():
                reasons = recorded.notes if recorded.outcome == "ran" else ()
                said = recorded.message.splitlines() or reasons or ("the second run ended before",)
                return _noted(results, f"layers are not shown: {said[-1]}"), None
            trace, _ = load_trace(path)
        except DnnmemError as error:
            return _noted(results, f"layers are not shown: {error.message}"), None
    measured = _measurement(first)
    origin = replace(trace.origin, gpu=job.run.gpu.name, target=" ".join(job.words))
    trace = replace(trace, origin=origin)
    if job.save is not None:
        save_trace(trace, measured, job.save)
    return results, build_profile(trace, measured, job.run.gpu)


def _measurement(result: RankResult) -> Measurement:
    """What the plain run's last step needed."""
    gpu = result.device
    assert gpu is not None  # noqa: S101 - asked for before
    last = gpu.steps[-1]
    return Measurement(
        allocated_bytes=last.allocated_bytes,
        requested_bytes=last.requested_bytes,
        reserved_bytes=last.reserved_bytes,
        context_bytes=gpu.outside_bytes,
        facts={"alloc_retries": gpu.alloc_retries},
    )


def _noted(results: tuple[RankResult, ...], note: str) -> tuple[RankResult, ...]:
    return (replace(results[0], notes=(*results[0].notes, note)), *results[1:])
