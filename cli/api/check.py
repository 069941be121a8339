"""`dnnmem.check`: whether a step needs more memory than was accepted, from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from dnnmem.cli.api.shown import ShownCheck, shown
from dnnmem.cli.baseline_store import load_baseline, update_baseline
from dnnmem.cli.check_request import prepare_check
from dnnmem.cli.check_run import check_steps


def check(
    target: str,
    *,
    batch: int | None = None,
    seq: int | None = None,
    args: Mapping[str, object] | None = None,
    inputs: Sequence[str] = (),
    optimizer: str | None = None,
    device: str | None = None,
    gpu: str | None = None,
    seed: int | None = None,
    baseline: str | os.PathLike[str] | None = None,
    max_increase: str | float | None = None,
    max_slowdown: str | float | None = None,
    budget: str | int | None = None,
    update: bool = False,
) -> ShownCheck:
    """What `dnnmem check` finds for `target`; `found.fails` says whether it fails, which raises nothing here.

    Args: `update` accepts what the step needs now; the others are the options of the command, shares as `"2%"` or
    `0.02`, sizes as `"22GiB"` or bytes. Raises a `DnnmemError` if the step cannot be measured.
    """
    typed = {"batch": batch, "seq": seq, "optimizer": optimizer, "device": device, "gpu": gpu, "seed": seed}
    limits = {"max-increase": max_increase, "max-slowdown": max_slowdown, "budget": budget}
    asked = prepare_check(
        [target], typed, {name: None if value is None else str(value) for name, value in limits.items()}, os.environ,
        folder=Path.cwd(), inputs=inputs, args=[f"{name}={value}" for name, value in (args or {}).items()],
        baseline=Path(baseline) if baseline is not None else None,
    )  # fmt: skip
    (found,) = check_steps(asked.steps, load_baseline(asked.baseline) or {}, update=update)
    if found.error is not None:
        raise found.error
    if update and found.verdict is not None:
        update_baseline(asked.baseline, [found.verdict.entry])
    return shown(ShownCheck, found)
