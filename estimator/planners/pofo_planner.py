"""POFO as a planner: each block's activations are kept, computed again or sent to the host, whatever costs least.

Its schedules for budgets all over the range are held against the step itself, and so are those of Rotor and of
offloading alone, which are among the schedules it weighs.
"""

from __future__ import annotations

import numpy as np

from dnnmem.estimator.plan import Offload
from dnnmem.estimator.planners import rotor_planner
from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.planners.pofo import Pofo, Schedule
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.remat import named
from dnnmem.estimator.planners.rotor import solve
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.sent_blocks import blocks_text

_PLANS = 48
"""Budgets that are planned for, evenly from the least to all."""


def find(problem: Problem) -> Found:
    """The fastest of all these that fits."""
    tried = [*schedules(problem), *rotor_planner.plans(problem), *schedules(problem, runs=False)]
    return cheapest(problem, tried, what="recomputation and offloading")


def schedules(problem: Problem, *, runs: bool = True) -> list[Found]:
    """POFO's, from the one with the least memory to the one that keeps everything.

    Without `runs` nothing is computed again.
    """
    chain = problem.chain()
    most = float(max(problem.trace.peak_bytes() - chain.base_bytes, 1))
    pofo = Pofo(table=solve(chain, most), bytes_per_s=problem.cluster.host.bytes_per_s, runs=runs)
    fits = np.flatnonzero(np.isfinite(pofo.seconds()))
    if not fits.size:
        return []
    slots = dict.fromkeys(int(m) for m in np.linspace(fits[0], fits[-1], _PLANS).round())
    found = dict.fromkeys(pofo.schedule(m) for m in slots)
    return [as_found(chain, schedule) for schedule in found]


def as_found(chain: Chain, schedule: Schedule) -> Found:
    """A schedule in the words of a plan."""
    sent = blocks_text(schedule.sent)
    offload = Offload(activations="blocks", blocks=sent) if sent else Offload()
    return Found(remat=named(chain, schedule.runs), offload=offload, optimal=True)


def suits(problem: Problem) -> str:
    """For every chain, where the host is known."""
    why = rotor_planner.suits(problem)
    return f"{why}, and the link to the host is known" if why and problem.cluster.host.bytes_per_s else ""


PLANNER = Planner(
    name="pofo", words="which blocks to compute again and which to send, exactly (Beaumont et al. 2021)",
    needs="a chain of blocks, a host", find=find, suits=suits,
)  # fmt: skip
