"""Prices asked of other processes before a search needs them: what is next in its queue, while it works on the first.

search    [a] [c] [e]      the order of the queue decides what is used, so that the result is the same
others    [b] [d] [f]      with one process, two, or none
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from dnnmem.estimator.errors import DnnmemError

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.recorded import Recorded
    from dnnmem.estimator.search import Priced
    from dnnmem.estimator.search_cost import Cost, Costs
    from dnnmem.estimator.techniques import Choice
    from dnnmem.estimator.time_model import TimeModel

_MOST = 3
"""Processes, at most: a search seldom has more to ask for that it will need."""
A = TypeVar("A")


@dataclass(slots=True, kw_only=True, eq=False)
class Ahead:
    """Prices in the making, one for each process."""

    pool: ProcessPoolExecutor
    """Its processes hold the costs of one recorded step."""
    places: int
    """How many prices are made at once."""
    by_runs: dict[Plan, Future[tuple[Cost, int | None] | None]] = field(default_factory=dict)
    """Prices by runs, with what lasts of the peak."""
    by_ops: dict[tuple[Plan, float], Future[Priced | None]] = field(default_factory=dict)
    """Prices op by op, by plan and budget."""

    def begin_runs(self, plan: Plan) -> None:
        """Ask for a price by runs."""
        if plan not in self.by_runs and self._is_free():
            with suppress(BrokenProcessPool):
                self.by_runs[plan] = self.pool.submit(_by_runs, plan)

    def begin_exact(self, choice: Choice, budget_bytes: float) -> None:
        """Ask for a price op by op."""
        key = choice.plan, budget_bytes
        if key not in self.by_ops and self._is_free():
            with suppress(BrokenProcessPool):
                self.by_ops[key] = self.pool.submit(_exactly, choice, budget_bytes)

    def runs(self, plan: Plan) -> tuple[Cost, int | None] | None:
        """The price by runs, and what lasts of its peak; None if it was not begun, or is an error."""
        return self._taken(self.by_runs.pop(plan, None))

    def exact(self, choice: Choice, budget_bytes: float) -> Priced | None:
        """The price op by op; None if it was not begun, or is an error."""
        return self._taken(self.by_ops.pop((choice.plan, budget_bytes), None))

    def _is_free(self) -> bool:
        busy = sum(not future.done() for future in self.by_runs.values())
        return busy + sum(not future.done() for future in self.by_ops.values()) < self.places

    def _taken(self, future: Future[A | None] | None) -> A | None:
        try:
            return None if future is None else future.result()
        except BrokenProcessPool:  # the search does it all itself from here on
            self.places = 0
            return None


@contextmanager
def ahead_of(
    recorded: Recorded, cluster: Cluster, model: TimeModel, *, processes: int | None = None
) -> Iterator[Ahead | None]:
    """Processes that price plans of a recorded step, until the block ends; None where there is no core for them.

    `processes`: how many; None = one for each core but this process's, at most three. They import the program's main
    module, as `multiprocessing` does where it spawns, so that a script needs its `if __name__ == "__main__"`.
    """
    count = min(_cores() - 1, _MOST) if processes is None else processes
    if count < 1:
        yield None
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_start, initargs=(recorded, cluster, model))
    try:
        yield Ahead(pool=pool, places=count)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_costs: list[Costs] = []
"""Those of this process."""


def _start(recorded: Recorded, cluster: Cluster, model: TimeModel) -> None:
    from dnnmem.estimator.search_cost import Costs

    _costs[:] = [Costs(recorded=recorded, cluster=cluster, model=model)]


def _by_runs(plan: Plan) -> tuple[Cost, int | None] | None:
    """None for an error: the search makes it itself, and tells it."""
    [costs] = _costs
    try:
        return costs.by_runs(plan), costs.lasting.get(plan)
    except DnnmemError:
        return None


def _exactly(choice: Choice, budget_bytes: float) -> Priced | None:
    from dnnmem.estimator.search import priced_exactly

    [costs] = _costs
    try:
        return priced_exactly(costs, choice, budget_bytes)
    except DnnmemError:
        return None
