"""The second run of a script: its ranks once more, their last steps recorded, so that layers can be told apart.

Its peaks are not reported: recording changes a step a little. They explain those of the first run, as far as they go;
what stands in the way (a single step, a failure, a compiled model) becomes a note of the rank's result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.cli.commands.deliver import make_profile
from dnnmem.cli.commands.job import SAVED
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.profile import Measurement, Profile
from dnnmem.estimator.trace_file import load_trace, save_trace
from dnnmem.profilers.ranks import recorded_step, run_script

if TYPE_CHECKING:
    from dnnmem.cli.commands.run_job import RunJob
    from dnnmem.profilers.script_result import RankResult

Profiles = dict["int | None", "Profile"]
"""Recorded steps by rank; a rank whose step could not be recorded is not there."""


def record(
    job: RunJob, results: tuple[RankResult, ...], base: Mapping[str, str], *, cache: Path | None
) -> tuple[tuple[RankResult, ...], Profiles]:
    """The results, with a note where no step could be recorded, and each rank's recorded step as a profile."""
    ran = [result for result in results if result.outcome == "ran" and result.device is not None and result.steps]
    together = len(results) == job.run.world_size > 1
    if not ran or (together and len(ran) < len(results)):
        return results, {}
    steps = min(result.steps for result in ran)
    if steps < 2:
        return _noted(
            results, "layers are not shown: a step is recorded after a first one, so --steps must be 2 or more"
        ), {}
    if any(result.graphs for result in ran):
        return _noted(
            results, "layers are not shown: the program is compiled, and a recorder sees only whole graphs"
        ), {}
    request = replace(job.run.request, record=True, steps=steps)
    ranks = None if job.run.ranks is None else tuple(result.rank for result in ran if result.rank is not None)
    profiles: dict[int | None, Profile] = {}
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        try:
            again = run_script(replace(job.run, request=request, ranks=ranks), base, cache=cache, save=Path(name))
            for plain, recorded in zip(ran, again, strict=True):
                path = recorded_step(Path(name), plain.rank)
                if path.exists():
                    profiles[plain.rank] = _profile(job, plain, path, first=not profiles)
                else:
                    results = _noted(results, f"layers are not shown: {_reason(recorded)}", plain.rank)
        except DnnmemError as error:
            return _noted(results, f"layers are not shown: {error.message}"), profiles
    return results, profiles


def saved_as(job: RunJob, rank: int | None, *, first: bool) -> Path | None:
    """Where the recorded step of a rank is kept: `--save`, and beside it for all ranks but the first."""
    if job.save is None or first:
        return job.save
    return job.save.with_name(f"{job.save.name.removesuffix(SAVED)}-rank{rank}{SAVED}")


def _reason(recorded: RankResult) -> str:
    """Why a rank has no recorded step."""
    said = recorded.message.splitlines() or (recorded.notes if recorded.outcome == "ran" else ())
    return (said or ("the second run ended before",))[-1]


def _profile(job: RunJob, plain: RankResult, path: Path, *, first: bool) -> Profile:
    """A rank's recorded step, with the peaks of its plain run."""
    trace, _ = load_trace(path)
    measured = _measurement(plain)
    origin = replace(trace.origin, gpu=job.run.gpu.name, target=" ".join(job.words))
    trace = replace(trace, origin=origin)
    if (to := saved_as(job, plain.rank, first=first)) is not None:
        save_trace(trace, measured, to)
    return make_profile(trace, measured, job.run.gpu)


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


def _noted(results: tuple[RankResult, ...], note: str, rank: int | None = None) -> tuple[RankResult, ...]:
    """The results with a note at `rank`, or at the first of them."""
    place = next((i for i, result in enumerate(results) if result.rank == rank), 0)
    noted = replace(results[place], notes=(*results[place].notes, note))
    return (*results[:place], noted, *results[place + 1 :])
