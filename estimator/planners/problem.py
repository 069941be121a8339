"""What planners are asked: a step, a budget in bytes, the machine; and what a plan of theirs really costs.

    trace --base plan--> step --planner--> remat, offload --passes, replay, lanes--> peak bytes, seconds

A planner reasons on a model of the step (a chain, a graph). Its answer is held against the step itself: rewritten by
the passes, played on PyTorch's allocator, timed on lanes. All planners of one problem share what is worked out for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import numpy as np

from dnnmem.estimator.cluster import Cluster, find_cluster
from dnnmem.estimator.errors import InfeasibleError, UnsupportedError, UsageError
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.passes import rewrite_model
from dnnmem.estimator.plan import Offload, Plan, Remat, check
from dnnmem.estimator.planners.chain import Chain, chain_of
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.roofline import host_seconds, op_seconds
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.time_model import TimeModel, load
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.units import format_bytes
from dnnmem.estimator.work import work_of

T = TypeVar("T")
_LOOKS = 8
"""Plans that `held` holds against the step, at most."""
_SURE = 0.99
"""A planner's model of what a step allocates, beside what lives before it, is not too high by more."""
_EQUAL = 1 - 1e-6
"""Seconds that are nearer are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a planned step."""

    peak_bytes: int
    """What PyTorch's allocator reserves at the peak."""
    seconds: float
    """Of one optimizer step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a planner answers."""

    remat: Remat = field(default_factory=Remat)
    """What is computed again."""
    offload: Offload = field(default_factory=Offload)
    """What rests on the host."""
    cost: Cost | None = None
    """None: that of the step which `remat` and `offload` make. Set by planners whose schedule no plan expresses."""
    expected: Cost | None = None
    """By the planner's model of the step: no fewer seconds, and what is allocated; None = not known."""
    optimal: bool = False
    """True if its model of the step has no cheaper plan."""
    gap: float | None = None
    """Share by which the best plan could be cheaper at most; None = not known."""
    schedule: str = ""
    """The schedule as text where `remat` and `offload` do not say it; lines."""
    notes: tuple[str, ...] = ()
    """What a person should know, in sentences."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """A step to be made to fit; see `problem_of`."""

    trace: Trace
    """The step as the base plan leaves it: a chain or a graph is read off it."""
    recorded: Trace
    """As recorded."""
    budget_bytes: int
    """What PyTorch's allocator may reserve."""
    cluster: Cluster
    """The machine; its first GPU and the link to its host count."""
    model: TimeModel
    """Its rates."""
    base: Plan
    """What is decided already; its remat and activation offload are replaced."""
    time_limit_seconds: float
    """For planners that search: the best plan by then is the answer."""
    known: dict[object, Cost] = field(default_factory=dict)
    """Costs of plans, by plan."""
    made: dict[str, object] = field(default_factory=dict)
    """Models of the step and what was planned on them, by name: `chain`, ..."""

    def seconds(self) -> list[float]:
        """Of each op of `trace`: on the GPU, or where issuing takes longer in all, on the host."""
        work = work_of(self.trace)
        gpu = np.nan_to_num(op_seconds(work, self.cluster.device, self.model), nan=0.0)
        host = host_seconds(work, self.model)
        found: list[float] = (gpu if gpu.sum() >= host.sum() else host).tolist()
        return found

    def chain(self) -> Chain:
        """`trace` as a chain of stages. Raises `UnsupportedError` for a model that is none."""
        return self.once("chain", lambda: chain_of(self.trace, self.seconds()))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returns, made once for all planners and budgets."""
        if name not in self.made:
            self.made[name] = make()
        return cast("T", self.made[name])

    def plan(self, found: Found) -> Plan:
        """The base plan with an answer in it."""
        return replace(self.base, remat=found.remat, offload=self._offload(found.offload))

    def _offload(self, offload: Offload) -> Offload:
        return replace(offload, optimizer=self.base.offload.optimizer)

    def cost(self, found: Found) -> Cost:
        """What an answer costs: its own word, or the rewritten step's. Raises what passes raise."""
        if found.cost is not None:
            return found.cost
        plan = self.plan(found)
        if plan not in self.known:
            step = local_step(self.recorded, plan, self.cluster)
            peak = max(replay_trace(chunk.trace).peak_reserved_bytes for chunk in step.chunks)
            self.known[plan] = Cost(peak_bytes=peak, seconds=time_step(step, self.model).seconds)
        return self.known[plan]

    def plain(self) -> Cost:
        """Of the step that keeps everything on the GPU."""
        return self.cost(Found())

    def infeasible(self, least_bytes: int, what: str) -> InfeasibleError:
        """The error for "no `what` fits"; `least_bytes` is the smallest peak that was found."""
        return InfeasibleError(
            f"no {what} of {self.recorded.origin.target or 'the step'} fits {format_bytes(self.budget_bytes)}; "
            f"the least that was found needs {format_bytes(least_bytes)}",
            needed_bytes=least_bytes,
            hint="a larger budget, a smaller micro-batch, sharding or offloading frees more",
        )


def problem_of(
    recorded: Trace,
    budget_bytes: int,
    *,
    cluster: Cluster | None = None,
    model: TimeModel | None = None,
    base: Plan | None = None,
    time_limit_seconds: float = 60.0,
) -> Problem:
    """The problem of fitting `recorded` into `budget_bytes`.

    `cluster` None: the GPU that the trace was recorded for; `base`: what is decided besides.
    Raises `UsageError` where no GPU is known.
    """
    if cluster is None:
        if not recorded.origin.gpu:
            raise UsageError("the trace names no GPU, and planning needs its speed", hint="name one: --gpu h100")
        cluster = find_cluster(recorded.origin.gpu)
    base = replace(base or Plan(), remat=Remat(), offload=Offload(optimizer=bool(base and base.offload.optimizer)))
    check(base)
    return Problem(
        trace=rewrite_model(recorded, base, cluster), recorded=recorded, budget_bytes=budget_bytes, cluster=cluster,
        model=model or load(cluster.device), base=base, time_limit_seconds=time_limit_seconds,
    )  # fmt: skip


def cheapest(problem: Problem, tried: Iterable[Found], *, what: str) -> Found:
    """The fastest of some answers that keeps the real step within the budget.

    Where what is tried does not depend on the budget, more memory never costs time. Answers that are `expected` not to
    fit, or to take longer than the best so far, are not looked at. Raises `InfeasibleError`, naming `what` was planned.
    """
    best: tuple[float, Found] | None = None
    by_seconds = sorted(tried, key=lambda found: found.expected.seconds if found.expected else 0.0)
    least = problem.plain().peak_bytes
    for found in by_seconds:
        if _at_least(problem, found) > problem.budget_bytes:
            continue
        if best and found.expected and found.expected.seconds > best[0] * _EQUAL:
            break
        if (cost := _priced(problem, found)) is None:
            continue
        least = min(least, cost.peak_bytes)
        if cost.peak_bytes <= problem.budget_bytes and (best is None or cost.seconds < best[0]):
            best = cost.seconds, found
    if best is None:
        raise problem.infeasible(_least(problem, by_seconds, least), what)
    return best[1]


def _least(problem: Problem, tried: Iterable[Found], least: int) -> int:
    """The smallest peak of some answers, or `least`."""
    for found in sorted(tried, key=lambda found: _at_least(problem, found)):
        if _at_least(problem, found) > least:
            break
        cost = _priced(problem, found)
        least = min(least, cost.peak_bytes) if cost else least
    return least


def _at_least(problem: Problem, found: Found) -> float:
    """What a step reserves that allocates what is `expected`, in bytes."""
    if found.expected is None:
        return 0.0
    base = problem.trace.pinned_bytes()
    return base + _SURE * (found.expected.peak_bytes - base)


def _priced(problem: Problem, found: Found) -> Cost | None:
    """None where the passes refuse."""
    try:
        return problem.cost(found)
    except UnsupportedError:
        return None


def held(
    problem: Problem,
    propose: Callable[[float], Found | None],
    *,
    what: str,
    base_bytes: int,
    lightest: tuple[Found, ...] = (),
) -> Found:
    """The first of a planner's answers, for ever smaller budgets, that keeps the real step within the real one.

    Args: `propose` answers a budget in bytes above `base_bytes`, None where nothing fits; its model leaves out what the
    allocator loses to fragments. `lightest` are looked at last. Raises `InfeasibleError`, naming `what` was planned.
    """
    aim, least = float(problem.budget_bytes - base_bytes), problem.plain().peak_bytes
    last = list(lightest)
    for look in range(_LOOKS + len(last)):
        found = propose(aim) if look < _LOOKS and aim > 0 else None
        if found is None:
            if not last:
                break
            found = last.pop(0)
        needs = problem.cost(found).peak_bytes
        if needs <= problem.budget_bytes:
            return found
        least = min(least, needs)
        aim -= max(needs - problem.budget_bytes, 0.002 * problem.budget_bytes)
    raise problem.infeasible(least, what)
