"""The rematerialization that makes a step fit a budget at the least cost, held against the rewritten step itself.

    trace -> chain -> Rotor's plan -> pass -> replay       above the budget: plan for a smaller one, and look again

A chain's numbers leave out what the allocator loses to fragments; the replay does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dnnmem.estimator.errors import InfeasibleError
from dnnmem.estimator.passes import remat as remat_pass
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.rotor import solve
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.segments import Run, segments_text
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.units import format_bytes

_LOOKS = 8
"""Plans that are held against the step, at most."""


def plan_remat(
    trace: Trace,
    budget_bytes: int,
    chain: Callable[[], Chain],
    *,
    peak: Callable[[Trace], int] | None = None,
    longest: int | None = None,
    kept: int | None = None,
) -> Remat:
    """The rematerialization of `trace` that fits `budget_bytes` and takes the fewest seconds of its `chain`.

    Args: `chain` is that of `trace`, asked for where not everything can be kept. `peak` says what a rewritten trace
    needs; None: what PyTorch's allocator reserves for it. `longest`: most blocks of a run (1 under zero3, which gathers
    block by block); None for any number. `kept`: what `peak` says of `trace` itself, if that is known.
    Raises `InfeasibleError` where no plan fits, `UnsupportedError` for a model that is no chain of blocks.
    """
    peak = peak or _reserved
    least = peak(trace) if kept is None else kept
    if least <= budget_bytes:
        return Remat()
    stages = chain()
    table = solve(stages, max(trace.peak_bytes() - stages.base_bytes, 1), longest=longest)  # one for all budgets
    aim = float(budget_bytes - stages.base_bytes)
    lightest = [Remat(policy="full")]
    if table.least_bytes() < math.inf:
        lightest.append(named(stages, table.runs(table.least_bytes())))
    known: dict[Remat, int] = {}

    def fits(remat: Remat) -> bool:
        if remat not in known:
            known[remat] = peak(remat_pass.apply(trace, Plan(remat=remat)))
        return known[remat] <= budget_bytes

    for look in range(_LOOKS):
        if table.seconds_at(aim) == math.inf or (look > 1 and not any(map(fits, lightest))):
            break  # most fit at the second look
        found = named(stages, table.runs(aim))
        if fits(found):
            return found
        aim -= max(known[found] - budget_bytes, table.slot_bytes)
    for remat in lightest:
        if fits(remat):
            return remat
    least = min((least, *known.values()))
    raise InfeasibleError(
        f"no rematerialization of {trace.origin.target or 'the step'} fits {format_bytes(budget_bytes)}; the least "
        f"that was found needs {format_bytes(least)}",
        needed_bytes=least,
        hint="a smaller micro-batch, sharding or offloading frees more",
    )


def named(chain: Chain, runs: Sequence[Run]) -> Remat:
    """Runs as a field of a plan: `none` and `full` under their own names."""
    if not runs:
        return Remat()
    blocks = [stage.block for stage in chain.stages if stage.block is not None]
    if [(run.first, run.last) for run in runs] == [(block, block) for block in sorted(blocks)]:
        return Remat(policy="full")
    return Remat(policy="segments", segments=segments_text(runs))


def _reserved(trace: Trace) -> int:
    return replay_trace(trace).peak_reserved_bytes
