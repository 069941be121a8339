"""A bound for every plan of a space at once, before any of them is looked at: seconds and bytes as arrays.

    plans     shared by many: the micro-batch that keeps everything (a core), and how its stages take turns
    seconds   of the passes, by core, stages, schedule and micro-batches     + what every step takes
    bytes     of the states, by core, over the ranks that split them; of pipelines, of gradients at the end of a step

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
from dnnmem.estimator.plan import Context, Plan, Remat
from dnnmem.estimator.search_core import ALL_PARTS, Core, held_shares
from dnnmem.estimator.search_cost import Costs
from dnnmem.estimator.search_traffic import Traffic, least_traffic
from dnnmem.estimator.techniques import Choice
from dnnmem.estimator.trace import Kind

_SHARED = 0.97
"""Ops on a part of each sequence are no more efficient than on all of it: sums of rounded curves are less than that."""
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
    beside, after = _sent(costs, choices, row_of.tolist(), found)
    refused: dict[str, int] = {}
    for passes, count in zip(found, np.bincount(row_of, minlength=len(plans)).tolist(), strict=True):
        if passes.refused:
            refused[passes.refused] = refused.get(passes.refused, 0) + count
    seconds, states = np.array([p.seconds for p in found]), np.array([p.states for p in found])
    return Bounds(
        seconds=np.maximum(seconds[row_of], beside) + after,
        peak_bytes=(states[row_of] * _kept(choices)).sum(axis=1),
        refused=tuple(refused.items()),
    )


class _Passes(NamedTuple):
    """What plans share that differ in nothing that the core without recomputation sees."""

    seconds: float
    """Of forward and backward passes."""
    states: tuple[float, ...]
    """Bytes of states by kind, and of all gradients; a stage's on average."""
    core: Core | None
    """What they are read off."""
    refused: str = ""
    """Why it cannot be."""


def _row(plan: Plan, rows: dict[object, int], plans: list[Plan]) -> int:
    """The row of the table that a plan shares; parts of plans that are one object are equal."""
    key = (
        plan.mesh.tp, plan.mesh.cp, plan.mesh.ep, plan.mesh.pp, plan.batch.micro_batch, plan.batch.accumulation,
        id(plan.precision), id(plan.loss), id(plan.tensor), id(plan.context), id(plan.experts), id(plan.compression),
        id(plan.pipeline), plan.optimizer.name, plan.optimizer.state, plan.sharding.strategy in ALL_PARTS,
    )  # fmt: skip
    known = rows.get(key)
    if known is None:
        known = rows[key] = len(plans)
        plans.append(plan)
    return known


def _of_passes(costs: Costs, plan: Plan) -> _Passes:
    """Ranks that share sequences take their part of the seconds of whole ones at least, and states are as large."""
    optimizer = replace(plan.optimizer, kernel=None, in_backward=False)
    mesh, cp = replace(plan.mesh, cp=1), plan.mesh.cp
    plain = replace(plan, mesh=mesh, context=Context(), remat=Remat(), optimizer=optimizer)
    try:
        core = costs.core(plain)
        seconds = costs.passes_seconds(core, plain) * (_SHARED / cp if cp > 1 else 1.0)
    except (UnsupportedError, UsageError) as error:
        return _Passes(math.inf, (0.0,) * (len(_SPLIT) + 1), None, error.message)
    states = (*(core.states[kind] for kind in _SPLIT), core.gradient_bytes)
    return _Passes(seconds, tuple(nbytes / plan.mesh.pp for nbytes in states), core)


def _sent(
    costs: Costs, choices: Sequence[Choice], row_of: Sequence[int], found: Sequence[_Passes]
) -> tuple[Floats, Floats]:
    """What each plan sends beside its passes, and after them, in seconds."""
    known: dict[tuple[int, ...], Traffic] = {}
    seconds = np.zeros((len(choices), 2))
    for n, (choice, row) in enumerate(zip(choices, row_of, strict=True)):
        plan, core = choice.plan, found[row].core
        key = (row, id(plan.mesh), id(plan.sharding), id(plan.gradients))
        if core is not None and key not in known:
            known[key] = least_traffic(core, plan, costs.rates)
        seconds[n] = known.get(key, (0.0, 0.0))
    return seconds[:, 0], seconds[:, 1]


def _kept(choices: Sequence[Choice]) -> Floats:
    """The share of parameters, gradients and states that a rank of each plan keeps on the GPU, and of all gradients."""
    known: dict[tuple[int, ...], tuple[float, ...]] = {}
    shares = np.empty((len(choices), len(_SPLIT) + 1))
    for n, choice in enumerate(choices):
        plan = choice.plan
        parts = (plan.mesh, plan.sharding, plan.offload, plan.optimizer, plan.pipeline, plan.batch)
        key = tuple(map(id, parts))
        if key not in known:
            known[key] = held_shares(plan)
        shares[n] = known[key]
    return shares
