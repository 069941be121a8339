"""What a plan costs at least, drawn out from few blocks to all of them: a price for few, whatever the model's length.

    3 blocks [x]   4 blocks [x]  - - - - - - -  80 blocks       a line through both is not above the curve beyond them

Seconds are maxima over paths through the step, bytes over moments, each of which grows evenly with the blocks: such a
maximum grows ever faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dnnmem.estimator.coarsen import live_peak
from dnnmem.estimator.context_ranks import from_context
from dnnmem.estimator.local_step import LocalStep, step_of
from dnnmem.estimator.passes import rewrite_rank
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.search_core import STATES, Core, Rates, few_in_runs, few_of, with_costs
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.trace import Kind, Trace

Few = tuple[tuple[int, Trace], tuple[int, Trace]]
"""A step of some blocks, and of one more, each after its number of blocks."""
LASTING = STATES | {Kind.COMM}
"""What blocks do not save for their backward passes."""
RUNS_MARGIN = 0.998
"""By runs, what lives and dies within one counts as if it did so just where the passes cut in: up to 0.1 % too much."""
CHUNKS_MARGIN = 0.97
"""The same where a head runs in chunks, between which parameters are gathered and gradients sent."""
_STAGES_MARGIN = 0.999
"""What stages send beside their update waits for runs, not for ops: a tenth of that in all that was tried."""
DRAWN = 0.99
"""Paths through a step repeat after two blocks, or the first ones differ: less than that in all that was tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A bound."""

    seconds: float = 0.0
    """Of a step."""
    peak_bytes: int = 0
    """What is allocated at the peak."""
    lasting_bytes: int = 0
    """The same of what blocks do not save for their backward passes."""


def waits_margin(plan: Plan) -> float:
    """By how much seconds by runs are lower than they were, so that they are a bound."""
    return _STAGES_MARGIN if plan.mesh.pp > 1 else 1.0


def drawn_out(few: Few, layers: int, price: Callable[[Trace], Drawn]) -> Drawn:
    """From `few` blocks to `layers`; `price` says what a step of some blocks costs."""
    (some, less), (_, more) = few
    first, second, left = price(less), price(more), layers - some
    return Drawn(
        seconds=(first.seconds + left * (second.seconds - first.seconds)) * DRAWN,
        peak_bytes=int((first.peak_bytes + left * (second.peak_bytes - first.peak_bytes)) * RUNS_MARGIN),
        lasting_bytes=int((first.lasting_bytes + left * (second.lasting_bytes - first.lasting_bytes)) * RUNS_MARGIN),
    )


def drawn_by_ops(core: Core, plan: Plan, rates: Rates) -> Drawn:
    """What `plan` costs on its core, op by op; nothing where that is whole."""

    def price(trace: Trace) -> Drawn:
        local = rewrite_rank(trace, plan, rates.cluster)
        step = step_of([local], trace, plan, rates.cluster, 0)
        return Drawn(seconds=_even_seconds(step, rates), peak_bytes=live_peak(local))

    return Drawn() if core.layers is None else drawn_out(few_of(core), core.layers, price)


def drawn_by_runs(core: Core, plan: Plan, rates: Rates) -> Drawn:
    """The same by runs."""

    def price(trace: Trace) -> Drawn:
        local = rewrite_rank(trace, plan, rates.cluster)
        step = with_costs(step_of([local], trace, plan, rates.cluster, 0), rates.runs, rates.model)
        lasting = live_peak(local, LASTING)
        return Drawn(seconds=_even_seconds(step, rates), peak_bytes=live_peak(local), lasting_bytes=lasting)

    return Drawn() if core.layers is None else drawn_out(few_in_runs(core), core.layers, price)


def _even_seconds(step: LocalStep, rates: Rates) -> float:
    """None where few blocks hardly fill a bucket of gradients."""
    plan = from_context(step.plan)
    even = plan.mesh.data_ranks == 1 or plan.splits_parameters
    return time_step(step, rates.model).seconds if even else 0.0
