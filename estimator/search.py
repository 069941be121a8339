"""The best plans of a space, found without pricing all of it: whatever a bound rules out is never looked at closer.

    all plans       bounds at once (`search_grid`); those that none rules out enter the queue when it comes to them
    queue by key    [bound 1.20] [bound 1.22] [runs 1.25] [exact 1.26] ...
                        |            a plan at the head is priced once more exactly, and goes back into the queue
                        `-- guess -> bound -> few blocks -> runs of ops -> op by op: nothing left is better, it is next

Each price is no more than the next more exact one, in seconds and in bytes, so that what leaves the queue op by op is
in the order in which pricing everything would have put it (best-first search). A plan is dropped when the least that
it needs is above the budget. Nothing is left to chance; equal keys go by fewer techniques, then by the order of the
space.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from dnnmem.estimator.errors import DnnmemError, InfeasibleError, UnsupportedError, UsageError
from dnnmem.estimator.estimate import Estimate
from dnnmem.estimator.plan import Plan, Remat, check
from dnnmem.estimator.search_ahead import Ahead, Question, answer_of
from dnnmem.estimator.search_core import Cost
from dnnmem.estimator.search_cost import WHOLE, Costs
from dnnmem.estimator.search_grid import bounds
from dnnmem.estimator.techniques import Choice

OBJECTIVES = ("throughput", "cost", "memory", "time-to-train")
"""What is made best: samples a second; dollars a sample; the peak, among plans of at most `MEMORY_SLOWDOWN` times the
least time; seconds of a step. With a given global batch the first and the last are the same order."""
MEMORY_SLOWDOWN = 2.0
"""How much slower than the fastest plan one may be that is taken for its memory."""
_NO_BUDGET = float(1 << 60)
_ANOTHER = "another plan of the space is the same"
_AGAIN, _LESS = 1, 0.97
"""How often a rematerialization is planned anew, and for how much less than if fragments stayed as they are."""
_AHEAD = 6
"""Plans at the head of the queue that are priced before their turn."""
_ROUNDING = 1 - 1e-9
"""Sums of floats in another order: bounds are this much lower."""


class Level(IntEnum):
    """How exactly a plan is priced."""

    GUESS = 0
    """By the core that recomputes nothing, and what it must."""
    PLAIN = 1
    """By runs of ops, as if it kept everything, which no recomputation is faster than."""
    BOUND = 2
    """By its own core."""
    DRAWN = 3
    """By runs of few blocks, drawn out to all."""
    RUNS = 4
    """By runs of ops."""
    EXACT = 5
    """Op by op."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A plan of the space with its estimate."""

    choice: Choice
    """The plan and what it is made of."""
    estimate: Estimate
    """Its price, op by op."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a search did."""

    considered: int = 0
    """Plans of the space."""
    priced: int = 0
    """Of them priced by runs of ops."""
    exact: int = 0
    """Of them priced op by op."""
    unsupported: dict[str, int] = field(default_factory=dict)
    """Why some could not be priced, and how many."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    choice: Choice
    level: Level
    cost: Cost
    estimate: Estimate | None = None


class Search:
    """A queue over one space. `limit_seconds` and `budget_bytes` drop what takes more; `ahead` prices beside it."""

    def __init__(
        self,
        costs: Costs,
        choices: Sequence[Choice],
        *,
        objective: str,
        budget_bytes: float,
        limit_seconds: float = float("inf"),
        tally: Tally | None = None,
        on_price: Callable[[], None] = lambda: None,
        ahead: Ahead | None = None,
    ) -> None:
        """Nothing is priced yet."""
        self.costs, self.objective, self.budget, self.limit = costs, objective, budget_bytes, limit_seconds
        self.tally = tally or Tally()
        self.on_price, self.ahead = on_price, ahead
        self.queue: list[tuple[float, int, int, int, _Entry]] = []
        self.tally.considered = max(self.tally.considered, len(choices))
        self.waiting: list[tuple[float, int, int, Choice, Cost]] = []
        """Plans that have not entered the queue: key, techniques, place in the space; the best one last."""
        if choices:
            self._wait(choices)

    def _wait(self, choices: Sequence[Choice]) -> None:
        """Have those of `choices` wait that their bounds do not rule out."""
        found = bounds(self.costs, choices)
        for why, count in found.refused:
            self.tally.unsupported[why] = max(self.tally.unsupported.get(why, 0), count)
        left = np.isfinite(found.seconds) & (found.peak_bytes <= self.budget)
        left &= found.seconds * _ROUNDING <= self.limit
        for order in np.flatnonzero(left).tolist():
            choice = choices[order]
            cost = Cost(seconds=float(found.seconds[order]), peak_bytes=int(found.peak_bytes[order]))
            self.waiting.append((self.key(choice, cost) * _ROUNDING, choice.count, order, choice, cost))
        self.waiting.sort(key=lambda item: item[:3], reverse=True)

    def _admit(self) -> None:
        """Let those enter the queue whose turn it may be, and a few more to look ahead at."""
        while self.waiting and (len(self.queue) < _AHEAD or self.waiting[-1][0] <= self.queue[0][0]):
            _, _, order, choice, cost = self.waiting.pop()
            self._enter(order, _Entry(choice=choice, level=Level.GUESS, cost=cost))

    def best(self) -> Iterator[Priced]:
        """Plans that fit, best first, for as long as they are asked for."""
        while self.queue or self.waiting:
            self._admit()
            if not self.queue:
                return
            _, _, _, order, entry = heapq.heappop(self.queue)
            if entry.estimate is not None:
                yield Priced(choice=entry.choice, estimate=entry.estimate)
            else:
                self._refine(order, entry)

    def within(self, key: float, fewer_than: int) -> Iterable[Priced]:
        """What is left that has fewer techniques and may be within `key`."""
        for _, _, order, choice, cost in [w for w in self.waiting if w[0] <= key and w[1] < fewer_than]:
            self._enter(order, _Entry(choice=choice, level=Level.GUESS, cost=cost))
        self.waiting = [w for w in self.waiting if w[0] > key or w[1] >= fewer_than]
        near = sorted(item for item in self.queue if item[0] <= key and item[4].choice.count < fewer_than)
        self.queue = [item for item in self.queue if item[0] > key or item[4].choice.count >= fewer_than]
        heapq.heapify(self.queue)
        inner = Search(
            self.costs, (), objective=self.objective, budget_bytes=self.budget, limit_seconds=self.limit,
            tally=self.tally, on_price=self.on_price, ahead=self.ahead,
        )  # fmt: skip
        inner.queue = near
        for priced in inner.best():
            if self.key(priced.choice, _cost_of(priced.estimate)) > key:
                break
            yield priced

    def key(self, choice: Choice, cost: Cost) -> float:
        """Less is better."""
        return key_of(self.objective, choice, cost)

    def _refine(self, order: int, entry: _Entry) -> None:
        level = Level(entry.level + 1)
        estimate = None
        self._look_ahead()
        try:
            if level is Level.PLAIN:
                check(entry.choice.plan)
                cost = self._plain(entry)
            elif level is Level.BOUND:
                entry.choice = self._planned(entry.choice)
                bound = self.costs.bound(entry.choice.plan)
                cost = _more(bound, entry.cost)
            elif level is Level.DRAWN:
                drawn = self.costs.drawn(entry.choice.plan)
                cost = _more(Cost(seconds=drawn.seconds, peak_bytes=drawn.peak_bytes), entry.cost)
            elif level is Level.RUNS:
                if self._is_too_large(entry.choice.plan):
                    return
                self.tally.priced += 1
                self.on_price()
                cost = self._by_runs(entry.choice.plan)
            else:
                self.tally.exact += 1
                self.on_price()
                priced = self._exactly(entry.choice)
                entry.choice, estimate = priced.choice, priced.estimate
                cost = _cost_of(estimate)
        except InfeasibleError:
            return
        except DnnmemError as error:
            if error.message == _ANOTHER:
                return
            self.tally.unsupported[error.message] = self.tally.unsupported.get(error.message, 0) + 1
            return
        self._enter(order, _Entry(choice=entry.choice, level=level, cost=cost, estimate=estimate))

    def _is_too_large(self, plan: Plan) -> bool:
        """Whether another plan has shown that this one does not fit."""
        return self.costs.families.least_bytes(plan) > self.budget

    def _by_runs(self, plan: Plan) -> Cost:
        self._take(("runs", plan, 0.0))
        return self.costs.by_runs(plan)

    def _exactly(self, choice: Choice) -> Priced:
        found = self._take(("exact", choice.plan, self.budget))
        return found if isinstance(found, Priced) else priced_exactly(self.costs, choice, self.budget)

    def _take(self, question: Question) -> object:
        """An answer from elsewhere, among what is known then; what comes next is worked on here while it takes."""
        if self.ahead is None:
            return None
        while self.ahead.is_awaited(question):
            following = next(self._unbegun(), None)
            if following is None:
                break
            self.ahead.keep(following[0], answer_of(self.costs, *following))
            self._look_ahead()
        found = self.ahead.answer(question)
        kind, plan, budget = question
        if kind == "runs" and isinstance(found, tuple):
            self.costs.priced[plan], lasting = found
            if lasting is not None:
                self.costs.lasting[plan] = lasting
        elif kind == "remat" and isinstance(found, tuple):
            [self.costs.plans[plan, budget]] = found
        return found

    def _look_ahead(self) -> None:
        """Have what is next in the queue priced elsewhere."""
        if self.ahead is not None:
            for question, asked in self._unbegun():
                self.ahead.begin(question, asked)

    def _unbegun(self) -> Iterator[tuple[Question, Plan | Choice]]:
        """What the head of the queue will ask for, and nobody is at, with the plan or choice that it is about."""
        for _, level, _, _, entry in heapq.nsmallest(_AHEAD, self.queue):
            choice = entry.choice
            question: Question
            asked: Plan | Choice = choice.plan
            if level == Level.DRAWN:
                question = ("runs", choice.plan, 0.0)
            elif level == Level.RUNS:
                question, asked = ("exact", choice.plan, self.budget), choice
            elif level < Level.BOUND and choice.planned_share:
                asked = replace(choice.plan, remat=Remat())
                question = ("remat", asked, self._planned_bytes(choice))
            else:
                continue
            known = question[1:] in self.costs.plans or (level == Level.DRAWN and choice.plan in self.costs.priced)
            known = known or (level == Level.DRAWN and self._is_too_large(choice.plan))
            if self.ahead is not None and not known and not self.ahead.is_begun(question):
                yield question, asked

    def _plain(self, entry: _Entry) -> Cost:
        """The guess, and not below the price of keeping everything; that is asked for where a core costs much."""
        plan = entry.choice.plan
        if plan.remat.policy not in WHOLE and not entry.choice.planned_share:
            return entry.cost
        plain = self.costs.keeping(replace(plan, remat=Remat()))
        again = self.costs.guess(plan, self._planned_bytes(entry.choice), plain.peak_bytes)
        return _more(
            Cost(seconds=max(plain.seconds, again.seconds), peak_bytes=plain.lasting_bytes), _more(again, entry.cost)
        )

    def _planned(self, choice: Choice) -> Choice:
        """With its rematerialization, where that depends on what is left of the budget."""
        if not choice.planned_share:
            return choice
        budget = self._planned_bytes(choice)
        self._take(("remat", replace(choice.plan, remat=Remat()), budget))
        return _planned_for(self.costs, choice, budget)

    def _enter(self, order: int, entry: _Entry) -> None:
        if entry.level is Level.GUESS:
            entry.cost = _more(entry.cost, self._guess(entry.choice))
        cost = entry.cost
        if cost.peak_bytes > self.budget or cost.seconds * _ROUNDING > self.limit:
            return
        key = self.key(entry.choice, cost) * (1.0 if entry.level is Level.EXACT else _ROUNDING)
        heapq.heappush(self.queue, (key, entry.level, entry.choice.count, order, entry))

    def _guess(self, choice: Choice) -> Cost:
        """The bound of the same plan without recomputation, which no recomputation is faster than."""
        if choice.plan.remat == Remat() and not choice.planned_share:
            return Cost(seconds=0.0, peak_bytes=0)
        try:
            return self.costs.guess(choice.plan, self._planned_bytes(choice))
        except (UnsupportedError, UsageError):
            return Cost(seconds=0.0, peak_bytes=0)

    def _planned_bytes(self, choice: Choice) -> float:
        """What its rematerialization is planned for; infinite if none is."""
        return choice.planned_share * min(self.budget, _NO_BUDGET) if choice.planned_share else math.inf


def priced_exactly(costs: Costs, choice: Choice, budget_bytes: float) -> Priced:
    """Op by op. What is planned for a budget, and does not fit for the allocator's fragments, is planned for less.

    Raises what passes and planners raise.
    """
    share = choice.planned_share
    for _ in range(_AGAIN if share else 0):
        reserved = costs.reserved_bytes(choice.plan)
        if reserved <= budget_bytes:
            break
        share *= _LESS * budget_bytes / min(reserved, costs.cluster.device.usable_bytes)
        choice = _planned_for(costs, choice, share * budget_bytes)
    return Priced(choice=choice, estimate=costs.exact(choice.plan))


def _planned_for(costs: Costs, choice: Choice, budget_bytes: float) -> Choice:
    """With the rematerialization for so many bytes. Raises `UnsupportedError` if that is a plan of another choice."""
    plan = costs.planned(replace(choice.plan, remat=Remat()), budget_bytes)
    if plan.remat.policy != "segments":
        raise UnsupportedError(_ANOTHER)
    return replace(choice, plan=plan)


def key_of(objective: str, choice: Choice, cost: Cost) -> float:
    """What an objective makes least; the global batch and the price of a GPU are the same for all plans."""
    if objective == "memory":
        return float(cost.peak_bytes)
    return cost.seconds * choice.plan.mesh.world_size if objective == "cost" else cost.seconds


def _more(a: Cost, b: Cost) -> Cost:
    return Cost(seconds=max(a.seconds, b.seconds), peak_bytes=max(a.peak_bytes, b.peak_bytes))


def _cost_of(estimate: Estimate) -> Cost:
    return Cost(seconds=estimate.step_seconds, peak_bytes=estimate.peak_reserved_bytes or 0)
