"""One door to all planners: which of them is asked, and what it answers for a step and a budget.

    solve(trace, budget_bytes, "rotor")      a planner by its name
    solve(trace, budget_bytes)               `auto`: the first of the registry whose structure the step has, and why

A planner is a file of this folder that holds `PLANNER`, or some in `PLANNERS`; `_MODULES` lists them in the order in
which `auto` asks.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from dnnmem.estimator.errors import InfeasibleError, UnsupportedError, UsageError
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.planners.problem import Cost, Found, Problem, problem_of
from dnnmem.estimator.trace import Trace

AUTO = "auto"
"""The planner that picks one."""
_MODULES = (
    "join", "hierarchical", "pofo_planner", "rotor_planner", "gruslys", "revolve", "chen", "chen_recursive",
    "offload_optimal", "multilevel", "min_cut_planner", "checkmate_planner", "kusumoto", "feng_huang", "dtr_planner",
    "offload_policies", "swap_advisor",
)  # fmt: skip
"""Files of this folder, in the order in which `auto` asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """One way to plan."""

    name: str
    """What `--planner` calls it."""
    words: str
    """What it does and whose it is, in a line."""
    needs: str
    """Structure of a step that it needs, for people: `a chain of blocks`, `any graph`."""
    find: Callable[[Problem], Found]
    """Its answer. Raises `InfeasibleError` where none fits, `UnsupportedError` for another structure."""
    suits: Callable[[Problem], str] = lambda _: ""
    """Why `auto` takes it for this step, in a clause; empty = it does not."""
    applied: bool = True
    """False if no plan ever expresses its schedules: they are predicted only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A planner's answer, priced."""

    planner: str
    """Who found it."""
    why: str
    """Why `auto` asked it; empty if it was named."""
    found: Found
    """The answer."""
    plan: Plan | None
    """What to apply; None where no plan expresses the schedule: it is predicted only."""
    cost: Cost
    """Of the planned step."""
    plain: Cost
    """Of the step that keeps everything."""
    solve_seconds: float
    """What planning took, pricing included."""

    @property
    def extra_seconds(self) -> float:
        """Of the planned step above the plain one."""
        return self.cost.seconds - self.plain.seconds

    @property
    def gradient_error(self) -> float | None:
        """By how much gradients differ from those of the step as it is; None = no plan expresses the schedule.

        What runs again, or rests on the host, comes back bit for bit, random numbers too.
        """
        return None if self.plan is None else 0.0


@cache
def planners() -> Mapping[str, Planner]:
    """All planners by name, in the order in which `auto` asks them."""
    found: dict[str, Planner] = {}
    for name in _MODULES:
        module = importlib.import_module(f"dnnmem.estimator.planners.{name}")
        several = getattr(module, "PLANNERS", None)
        found.update({planner.name: planner for planner in several or (module.PLANNER,)})
    return found


def solve(trace: Trace, budget_bytes: int, planner: str = AUTO, **about: Any) -> Solution:  # noqa: ANN401
    """The cheapest way that `planner` finds to run `trace` within `budget_bytes` of reserved memory.

    Args: `about` as for `problem_of`: `cluster`, `model`, `base`, `time_limit_seconds`.
    Raises `InfeasibleError` where nothing fits, `UnsupportedError` for a structure that the planner does not know,
    `UsageError` for an unknown name.
    """
    return solve_problem(problem_of(trace, budget_bytes, **about), planner)


def solve_problem(problem: Problem, planner: str = AUTO) -> Solution:
    """The same for a problem that several planners are asked."""
    begin = time.perf_counter()
    if planner != AUTO and planner not in planners():
        raise UsageError(f"--planner {planner} is not known; it is one of {', '.join((AUTO, *planners()))}")
    plain = problem.plain()
    if plain.peak_bytes <= problem.budget_bytes:
        answer = _Answer(planner, "everything fits", Found(optimal=True))
    else:
        answer = _fastest_known(problem, planner)
    found = answer.found
    return Solution(
        planner=answer.planner, why=answer.why, found=found, plan=problem.plan(found) if found.cost is None else None,
        cost=problem.cost(found), plain=plain, solve_seconds=time.perf_counter() - begin,
    )  # fmt: skip


class _Answer(NamedTuple):
    planner: str
    why: str
    found: Found


def _fastest_known(problem: Problem, planner: str) -> _Answer:
    """What `planner` finds, or what it found for a smaller budget of the same problem, where that is faster.

    A search that runs out of time may find less where it is given more.
    """
    known = problem.once(f"answers of {planner}", list[_Answer])
    error: InfeasibleError | None = None
    try:
        known.append(_picked(problem) if planner == AUTO else _Answer(planner, "", planners()[planner].find(problem)))
    except InfeasibleError as none:
        error = none
    fits = [answer for answer in known if problem.cost(answer.found).peak_bytes <= problem.budget_bytes]
    if not fits:
        raise error or problem.infeasible(problem.cost(known[-1].found).peak_bytes, "plan")
    return min(reversed(fits), key=lambda answer: problem.cost(answer.found).seconds)


def _picked(problem: Problem) -> _Answer:
    """Of the first planner that suits and finds a plan."""
    least: InfeasibleError | None = None
    for name, planner in planners().items():
        why = planner.suits(problem)
        if not why:
            continue
        try:
            return _Answer(name, why, planner.find(problem))
        except InfeasibleError as error:
            least = error if least is None or error.needed_bytes < least.needed_bytes else least
        except UnsupportedError:
            continue
    raise least or UnsupportedError(
        f"{problem.recorded.origin.target or 'the step'} is neither a chain of blocks nor a graph that a planner knows"
    )
