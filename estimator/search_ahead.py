"""Prices asked of other processes before a search needs them: what is next in its queue, while it works on the first.

    search    [a] [c] [e]      the order of the queue decides what is used, so that the result is the same
    others    [b] [d] [f]      with one process, two, or none

>>> with ahead_of(None, None, None, processes=0) as ahead:
...     print(ahead)
None
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
_Key = tuple[object, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Ahead:
    """Prices in the making, one for each process."""

    pool: ProcessPoolExecutor
    """Its processes hold the costs of one recorded step."""
    places: int
    """How many prices are made at once."""
    begun: dict[_Key, Future[Any]] = field(default_factory=dict)
    """By what was asked for."""

    def begin_runs(self, plan: Plan) -> None:
        """Ask for a price by runs."""
        self._begin((plan,), _by_runs, plan)

    def begin_exact(self, choice: Choice, budget_bytes: float) -> None:
        """Ask for a price op by op."""
        self._begin((choice.plan, budget_bytes), _exactly, choice, budget_bytes)

    def runs(self, plan: Plan) -> tuple[Cost, int | None] | None:
        """The price by runs, and what lasts of its peak; None if it was not begun, or is an error."""
        found: tuple[Cost, int | None] | None = self._take((plan,))
        return found

    def exact(self, choice: Choice, budget_bytes: float) -> Priced | None:
        """The price op by op; None if it was not begun, or is an error."""
        found: Priced | None = self._take((choice.plan, budget_bytes))
        return found

    def _begin(self, key: _Key, work: Any, *arguments: object) -> None:
        if key in self.begun or sum(not future.done() for future in self.begun.values()) >= self.places:
            return
        try:
            self.begun[key] = self.pool.submit(work, *arguments)
        except RuntimeError:  # the processes have died
            self.places = 0

    def _take(self, key: _Key) -> Any:
        future = self.begun.pop(key, None)
        try:
            return None if future is None else future.result()
        except BrokenProcessPool:
            self.places = 0
            return None


@contextmanager
def ahead_of(
    recorded: Recorded | None, cluster: Cluster | None, model: TimeModel | None, *, processes: int | None = None
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
