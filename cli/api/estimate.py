"""`dnnmem.estimate`: memory and time of one plan on one cluster, from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnmem.cli.api.profile import profile
from dnnmem.cli.api.shown import ShownEstimate, ShownProfile, shown
from dnnmem.cli.commands.estimate import load_plan, own_rates
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.estimate import price
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.mixed import estimate_mixed
from dnnmem.estimator.mixed_cluster import find_parts, whole
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change, from_json
from dnnmem.estimator.step_time import time_layers
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Trace


def estimate(
    target: str | os.PathLike[str] | Trace | ShownProfile,
    plan: Plan | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    cluster: str,
    settings: Sequence[str] = (),
    rates: str | os.PathLike[str] | None = None,
    batch: int | None = None,
    seq: int | None = None,
    args: Mapping[str, object] | None = None,
    optimizer: str | None = None,
    seed: int | None = None,
    timeout: float | None = None,
) -> ShownEstimate:
    """How long a step takes and what it needs, run by `plan` on `cluster`; nothing is trained.

    Args: `target` as on the command line, a trace or a profile that has one; `plan` is one, an object of its JSON form
    or a file with it, None the plain step; `settings` change it: `["mesh.dp_shard=8"]`; `cluster`: `h100:8`,
    `dgx-a100-80gb:4`, `my.toml`, `a100-80gb:4+h100:4`; the others are options of `dnnmem estimate`.
    Raises a `DnnmemError`.
    """
    parts, chosen = find_parts(cluster), _plan(plan, settings)
    where = whole(parts[0], parts)
    if isinstance(target, Trace):
        trace: Trace | None = target
    elif isinstance(target, ShownProfile):
        trace = target.trace
    else:
        on_gpu: dict[str, Any] = {} if where.device.vendor == "cpu" else {"gpu": where.device.name}
        if not str(target).endswith(".trace.json.gz"):
            on_gpu["device"] = "fake"
        trace = profile(
            target, batch, seq=seq, args=args, optimizer=optimizer, seed=seed, timeout=timeout, **on_gpu
        ).trace
    if trace is None:
        raise UsageError("this profile has no trace, and a plan needs the step", hint="profile the target again")
    if len(parts) > 1:
        mixed = estimate_mixed(trace, chosen, parts)
        layers = time_layers(mixed.step, mixed.model)
        return shown(ShownEstimate, mixed.found, step=mixed.step, model=mixed.model, layers=layers)
    model = load(where.device, Path(rates) if rates is not None else own_rates(cluster))
    step = local_step(trace, chosen, where)
    return shown(ShownEstimate, price(step, model), step=step, model=model, layers=time_layers(step, model))


def _plan(plan: Plan | Mapping[str, Any] | str | os.PathLike[str] | None, settings: Sequence[str]) -> Plan:
    if isinstance(plan, Plan):
        return change(plan, list(settings))
    if isinstance(plan, Mapping):
        return change(from_json(dict(plan)), list(settings))
    return load_plan(Path(plan) if plan is not None else None, list(settings))
