"""POFO as a planner: each block's activations are kept, computed again or sent to the host, whatever costs least.

Its schedules for budgets all over the range are held against the step itself, and so are those of Rotor, of offloading
alone and of two tiers of checkpoints, which are among the schedules it weighs.
"""

from __future__ import annotations

import numpy as np

from dnnmem.estimator.host_link import copy_bytes_per_s
from dnnmem.estimator.planners import rotor_planner
from dnnmem.estimator.planners.chain_plans import PLANS, as_found, table_of
from dnnmem.estimator.planners.pofo import Pofo
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner


def find(problem: Problem) -> Found:
    """The fastest of all these that fits."""
    return cheapest(problem, plans(problem), what="recomputation and offloading")


def plans(problem: Problem) -> list[Found]:
    """POFO's, then those of its parts."""
    parts = schedules(problem, runs=False), schedules(problem, tapes=False), rotor_planner.plans(problem)
    return [*schedules(problem), *(found for some in parts for found in some)]


def schedules(problem: Problem, *, runs: bool = True, tapes: bool = True) -> list[Found]:
    """POFO's, from the one with the least memory to the one that keeps everything.

    Without `runs` nothing is computed again; without `tapes` only inputs of what is computed again are sent.
    """
    return problem.once(f"pofo {runs} {tapes}", lambda: _by_budget(problem, runs=runs, tapes=tapes))


def _by_budget(problem: Problem, *, runs: bool, tapes: bool) -> list[Found]:
    rate = copy_bytes_per_s(problem.cluster, problem.model)
    pofo = Pofo(table=table_of(problem), bytes_per_s=rate, runs=runs, tapes=tapes)
    fits = np.flatnonzero(np.isfinite(pofo.seconds()))
    if not fits.size:
        return []
    slots = dict.fromkeys(int(m) for m in np.linspace(fits[0], fits[-1], PLANS).round())
    found = dict.fromkeys(pofo.schedule(m) for m in slots)
    return [as_found(problem, schedule.runs, schedule.sent, optimal=True) for schedule in found]


def suits(problem: Problem) -> str:
    """For every chain, where the host is known."""
    why = rotor_planner.suits(problem)
    return f"{why}, and the link to the host is known" if why and problem.cluster.host.bytes_per_s else ""


PLANNER = Planner(
    name="pofo", words="which blocks to compute again and which to send, exactly (Beaumont et al. 2021)",
    needs="a chain of blocks, a host", find=find, suits=suits,
)  # fmt: skip
