"""Prices asked of other processes before a search needs them: what is next in its queue, while it works on the first.

search    [a] [c] [e]      the order of the queue decides what is used, so that the result is the same
others    [b] [d] [f]      with one process, two, or none
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from dnnmem.estimator.errors import DnnmemError, InfeasibleError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan, Remat
    from dnnmem.estimator.recorded import Recorded
    from dnnmem.estimator.search import Priced
    from dnnmem.estimator.search_cost import Cost, Costs
    from dnnmem.estimator.techniques import Choice
    from dnnmem.estimator.time_model import TimeModel

_MOST = 3
"""Processes, at most: a search seldom has more to ask for that it will need."""
_GONE = (EOFError, OSError)
"""What a link raises whose other end has died."""

Question = tuple[str, "Plan", float]
"""What is asked for, of which plan, within which bytes."""


@dataclass(slots=True, kw_only=True, eq=False)
class Helper:
    """A process that prices plans, one at a time."""

    process: SpawnProcess
    """It."""
    link: Connection
    """Takes a question, gives its answer."""
    question: object = None
    """What it is at; None = nothing."""


@dataclass(slots=True, kw_only=True, eq=False)
class Ahead:
    """Prices in the making."""

    helpers: list[Helper]
    """Who makes them, one price each; those that died are taken out."""
    answers: dict[Question, object] = field(default_factory=dict)
    """Those that nobody has asked for yet; None = an error, which the search makes itself, and tells."""

    def know(self, recorded: Recorded, cluster: Cluster, model: TimeModel) -> None:
        """Give the helpers the step that is to be priced."""
        for helper in list(self.helpers):
            self._ask(helper, "the step", (recorded, cluster, model))

    def begin_runs(self, plan: Plan) -> None:
        """Ask for a price by runs."""
        self._begin(("runs", plan, 0.0), plan)

    def begin_remat(self, plan: Plan, budget_bytes: float) -> None:
        """Ask for the rematerialization that is planned for a budget."""
        self._begin(("remat", plan, budget_bytes), plan)

    def begin_exact(self, choice: Choice, budget_bytes: float) -> None:
        """Ask for a price op by op."""
        self._begin(("exact", choice.plan, budget_bytes), choice)

    def runs(self, plan: Plan) -> tuple[Cost, int | None] | None:
        """The price by runs, and what lasts of its peak; None if it was not begun, or is an error."""
        return cast("tuple[Cost, int | None] | None", self._answer(("runs", plan, 0.0)))

    def remat(self, plan: Plan, budget_bytes: float) -> tuple[Remat | None] | None:
        """The rematerialization that was planned, or that none fits; None if it was not begun, or is an error."""
        return cast("tuple[Remat | None] | None", self._answer(("remat", plan, budget_bytes)))

    def exact(self, choice: Choice, budget_bytes: float) -> Priced | None:
        """The price op by op; None if it was not begun, or is an error."""
        return cast("Priced | None", self._answer(("exact", choice.plan, budget_bytes)))

    def is_begun(self, choice: Choice, budget_bytes: float) -> bool:
        """Whether its price op by op was asked for, or is there."""
        question = ("exact", choice.plan, budget_bytes)
        return question in self.answers or any(helper.question == question for helper in self.helpers)

    def is_awaited(self, choice: Choice, budget_bytes: float) -> bool:
        """Whether some helper is still at it."""
        question = ("exact", choice.plan, budget_bytes)
        return any(helper.question == question and not self._has_answer(helper) for helper in self.helpers)

    def keep(self, choice: Choice, budget_bytes: float, priced: Priced | None) -> None:
        """What the search itself made of it while it waited."""
        self.answers["exact", choice.plan, budget_bytes] = priced

    def _begin(self, question: Question, asked: object) -> None:
        if question in self.answers or any(helper.question == question for helper in self.helpers):
            return
        for helper in list(self.helpers):
            if helper.question is None or self._has_answer(helper):
                self._hear(helper)
                self._ask(helper, question, (question, asked))
                return

    def _has_answer(self, helper: Helper) -> bool:
        """Also where it has died: `_hear` finds out."""
        try:
            return helper.link.poll()
        except _GONE:
            return True

    def _answer(self, question: Question) -> object:
        for helper in list(self.helpers):
            if helper.question == question:
                self._hear(helper)
        return self.answers.pop(question, None)

    def _ask(self, helper: Helper, question: object, words: object) -> None:
        try:
            helper.link.send(words)
            helper.question = question
        except _GONE:
            self._lose(helper)

    def _hear(self, helper: Helper) -> None:
        """Take what a helper was asked, once it has it."""
        question, helper.question = helper.question, None
        if question is None:
            return
        try:
            answer = helper.link.recv()
        except _GONE:
            self._lose(helper)
            return
        if isinstance(question, tuple):
            self.answers[cast("Question", question)] = answer

    def _lose(self, helper: Helper) -> None:
        """The search does it all itself from here on."""
        with suppress(ValueError):
            self.helpers.remove(helper)


@contextmanager
def ahead_of(*, processes: int | None = None) -> Iterator[Ahead | None]:
    """Processes that price plans, until the block ends; None where there is no core for them.

    `processes`: how many; None = one for each core but this process's, at most three. They import the program's main
    module, as `multiprocessing` does where it spawns, so that a script needs its `if __name__ == "__main__"`.
    """
    count = min(_cores() - 1, _MOST) if processes is None else processes
    if count < 1:
        yield None
        return
    helpers = [_helper() for _ in range(count)]
    try:
        yield Ahead(helpers=list(helpers))
    finally:
        for helper in helpers:
            helper.process.kill()
            helper.link.close()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _helper() -> Helper:
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    there.close()
    return Helper(process=process, link=here)


def _serve(link: Connection) -> None:
    """Answer until the other end is closed: first the step, then questions about it."""
    from dnnmem.estimator.search_cost import Costs

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the search ends its helpers
    gc.freeze()
    with suppress(*_GONE):
        recorded, cluster, model = link.recv()
        link.send(None)
        costs = Costs(recorded=recorded, cluster=cluster, model=model)
        while True:
            (kind, _, budget), asked = link.recv()
            link.send(_ANSWERS[kind](costs, asked, budget))


def _by_runs(costs: Costs, plan: Plan, _: float) -> tuple[Cost, int | None] | None:
    try:
        return costs.by_runs(plan), costs.lasting.get(plan)
    except DnnmemError:
        return None


def _remat(costs: Costs, plan: Plan, budget_bytes: float) -> tuple[Remat | None] | None:
    try:
        return (costs.planned(plan, budget_bytes).remat,)
    except InfeasibleError:
        return (None,)
    except DnnmemError:
        return None


def exactly(costs: Costs, choice: Choice, budget_bytes: float) -> Priced | None:
    """The price op by op; None for an error."""
    from dnnmem.estimator.search import priced_exactly

    try:
        return priced_exactly(costs, choice, budget_bytes)
    except DnnmemError:
        return None


_ANSWERS: dict[str, Callable[[Costs, Any, float], object]] = {"runs": _by_runs, "remat": _remat, "exact": exactly}
"""By the first word of a question."""
