"""Measures the steps of a check, many in one child process, and judges each against the baseline.

targets -> Requests -> run_many -> Entries -> judge(entry, accepted, limits) -> Verdicts
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dnnmem.cli.cache import cache_folder
from dnnmem.cli.check_request import Step
from dnnmem.estimator.baseline import Entry, Limits, Verdict, entry_of, judge
from dnnmem.estimator.collector import collector_paused
from dnnmem.estimator.errors import DnnmemError
from dnnmem.profilers.request import Request
from dnnmem.profilers.run_many import run_many


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What became of one target."""

    name: str
    """What the user named."""
    verdict: Verdict | None = None
    """What was found; None if it failed."""
    error: DnnmemError | None = None
    """Why it could not be measured."""
    limits: Limits
    """What was allowed."""
    accepted: bool = False
    """Whether the baseline takes what it needs now: `--update-baseline`."""

    @property
    def fails(self) -> bool:
        """Whether the check fails by it; a budget stands whatever is accepted."""
        if self.verdict is None:
            return True
        return self.verdict.over_budget if self.accepted else self.verdict.fails


def check_steps(
    steps: Sequence[Step],
    accepted: Mapping[str, Entry],
    *,
    update: bool = False,
    on_output: Callable[[str], None] = lambda _: None,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Checked]:
    """Measure the steps and judge them by the `accepted` ones, in their order.

    Args: `update` tells that the baseline will take what was measured, `on_output` gets the lines that the users' code
    prints, `on_done` the number of steps done so far.
    """
    found: dict[int, Checked] = {}
    cache = cache_folder(os.environ)
    requests, gpus = [step.request for step in steps], [step.gpu for step in steps]
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as folder:
        for index, answer in run_many(requests, Path(folder), cache=cache, gpus=gpus, on_output=on_output):
            step = steps[index]
            if isinstance(answer, DnnmemError):
                found[index] = Checked(name=step.name, error=answer, limits=step.limits)
            else:
                verdict = judge(_measured(answer, step), accepted, step.limits)
                found[index] = Checked(name=step.name, verdict=verdict, limits=step.limits, accepted=update)
            on_done(len(found))
    return [found[index] for index in sorted(found)]


@collector_paused()
def _measured(path: Path, step: Step) -> Entry:
    from dnnmem.cli.commands.deliver import against
    from dnnmem.estimator.build import build_profile
    from dnnmem.estimator.trace_file import load_trace

    trace, measurement = load_trace(path)
    trace, device = against(trace, step.gpu)
    entry = entry_of(build_profile(trace, measurement, device), trace, allocator=_allocator())
    key = replace(entry.key, target=step.name, batch={**entry.key.batch, **_chosen(step.request)})
    timed = step.limits.max_slowdown is not None  # else a file would change with every run on a clock
    return replace(entry, key=key, step_seconds=entry.step_seconds if timed else None)


def _chosen(request: Request) -> dict[str, int | str]:
    """What else of a request changes a step's memory, where it is not as usual."""
    chosen: dict[str, int | str] = {}
    if request.inputs:
        chosen["input"] = " ".join(request.inputs)
    if request.optimizer != "adamw":
        chosen["optimizer"] = request.optimizer
    return chosen


def _allocator() -> str:
    """PyTorch's allocator settings in force, as it reads them."""
    return os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
