"""A bound for every plan of a space at once, before any of them is looked at: seconds and bytes as arrays.

    plans     shared by many: the micro-batch that keeps everything (a core), and how its stages take turns
    seconds   of the passes, by core, stages, schedule and micro-batches     + what every step takes
    bytes     of the states, by core, over the ranks that split them

Recomputing and offloading are no faster than keeping everything, so that what is bounded is few steps for many plans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.search_core import ALL_PARTS, parts_of
from dnnmem.estimator.search_cost import Costs
from dnnmem.estimator.techniques import Choice
from dnnmem.estimator.trace import Kind

_SPLIT = (Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """One row a plan; no plan is faster, or needs less."""

    seconds: Floats
    """Of a step; infinite where the plan cannot be priced."""
    peak_bytes: Floats
    """Of the allocator."""
    refused: tuple[tuple[str, int], ...] = ()
    """Why plans cannot be priced, and how many."""


def bounds(costs: Costs, choices: Sequence[Choice]) -> Bounds:
    """Those of `choices`, in their order."""
    rows: dict[object, int] = {}
    plans: list[Plan] = []
    row_of = np.fromiter((_row(choice.plan, rows, plans) for choice in choices), np.intp, len(choices))
    found = [_of_passes(costs, plan) for plan in plans]
    refused: dict[str, int] = {}
    for passes, count in zip(found, np.bincount(row_of, minlength=len(plans)).tolist(), strict=True):
        if passes.refused:
            refused[passes.refused] = refused.get(passes.refused, 0) + count
    seconds, states = np.array([p.seconds for p in found]), np.array([p.states for p in found])
    return Bounds(
        seconds=seconds[row_of],
        peak_bytes=(states[row_of] * _kept(choices)).sum(axis=1),
        refused=tuple(refused.items()),
    )


class _Passes(NamedTuple):
    """What plans share that differ in nothing that the core without recomputation sees."""

    seconds: float
    """Of forward and backward passes."""
    states: tuple[float, ...]
    """Bytes of states by kind, a stage's on average."""
    refused: str = ""
    """Why it cannot be."""


def _row(plan: Plan, rows: dict[object, int], plans: list[Plan]) -> int:
    """The row of the table that a plan shares; parts of plans that are one object are equal."""
    key = (
        plan.mesh.tp, plan.mesh.cp, plan.mesh.pp, plan.batch.micro_batch, plan.batch.accumulation, id(plan.precision),
        id(plan.loss), id(plan.tensor), id(plan.context), id(plan.compression), id(plan.pipeline), plan.optimizer.name,
        plan.optimizer.state, plan.sharding.strategy in ALL_PARTS,
    )  # fmt: skip
    known = rows.get(key)
    if known is None:
        known = rows[key] = len(plans)
        plans.append(plan)
    return known


def _of_passes(costs: Costs, plan: Plan) -> _Passes:
    optimizer = replace(plan.optimizer, kernel=None, in_backward=False)
    plain = replace(plan, remat=Remat(), optimizer=optimizer)
    try:
        core = costs.core(plain)
        seconds = costs.passes_seconds(core, plain)
    except (UnsupportedError, UsageError) as error:
        return _Passes(math.inf, (0.0,) * len(_SPLIT), error.message)
    return _Passes(seconds, tuple(core.states[kind] / plan.mesh.pp for kind in _SPLIT))


def _kept(choices: Sequence[Choice]) -> Floats:
    """The share of parameters, gradients and states that a rank of each plan keeps on the GPU."""
    known: dict[tuple[int, ...], tuple[float, ...]] = {}
    shares = np.empty((len(choices), 3))
    for n, choice in enumerate(choices):
        plan = choice.plan
        key = (id(plan.mesh), id(plan.sharding), id(plan.offload), id(plan.optimizer))
        if key not in known:
            known[key] = _share(plan)
        shares[n] = known[key]
    return shares


def _share(plan: Plan) -> tuple[float, ...]:
    parts = parts_of(plan)
    there = not plan.offload.parameters
    on_gpu = (there, there and not plan.optimizer.in_backward, not plan.offload.optimizer)
    return tuple(here / parts[kind] for here, kind in zip(on_gpu, _SPLIT, strict=True))
