"""Measures the steps of a check, many in one child process, and judges each against the baseline.

targets -> Requests -> run_many -> Entries -> judge(entry, accepted, limits) -> Verdicts
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnnmem.cli.cache import cache_folder
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


def check_steps(
    steps: Sequence[tuple[Request, Limits]],
    accepted: Mapping[str, Entry],
    *,
    on_output: Callable[[str], None] = lambda _: None,
    on_done: Callable[[int], None] = lambda _: None,
) -> list[Checked]:
    """Measure the steps and judge them by the `accepted` ones, in their order.

    Args: `on_output` gets the lines that the users' code prints, `on_done` the number of steps done so far.
    """
    found: dict[int, Checked] = {}
    cache = cache_folder(os.environ)
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as folder:
        requests = [request for request, _ in steps]
        for index, answer in run_many(requests, Path(folder), cache=cache, on_output=on_output):
            request, limits = steps[index]
            if isinstance(answer, DnnmemError):
                found[index] = Checked(name=request.target, error=answer, limits=limits)
            else:
                verdict = _judged(answer, accepted, limits)
                found[index] = Checked(name=request.target, verdict=verdict, limits=limits)
            on_done(len(found))
    return [found[index] for index in sorted(found)]


@collector_paused()
def _judged(path: Path, accepted: Mapping[str, Entry], limits: Limits) -> Verdict:
    from dnnmem.cli.commands.deliver import against
    from dnnmem.estimator.build import build_profile
    from dnnmem.estimator.trace_file import load_trace

    trace, measurement = load_trace(path)
    trace, device = against(trace, None)
    entry = entry_of(build_profile(trace, measurement, device), trace, allocator=_allocator())
    return judge(entry, accepted, limits)


def _allocator() -> str:
    """PyTorch's allocator settings in force, as it reads them."""
    return os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""
