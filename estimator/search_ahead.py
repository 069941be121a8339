"""Prices asked of other processes before a search needs them: what is next in its queue, while it works on the first.

search    [a] [c] [e]      the order of the queue decides what is used, so that the result is the same
others    [b] [d] [f]      with one process, two, or none
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from dnnmem.estimator.errors import DnnmemError, InfeasibleError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.recorded import Recorded
    from dnnmem.estimator.search_cost import Costs
    from dnnmem.estimator.techniques import Choice
    from dnnmem.estimator.time_model import TimeModel

_MOST = 3
"""Processes, at most: a search seldom has more to ask for that it will need."""
_GONE = (EOFError, OSError)
"""What a link raises whose other end has died."""

_IN_ADVANCE = 2
"""Questions to a helper at once: it has one more to go on with when it has answered."""

Question = tuple[str, "Plan", float]
"""What is asked for, of which plan, within which bytes: `runs`, its price by runs and what lasts of its peak; `remat`,
the rematerialization for a budget, alone in a tuple; `exact`, its price op by op."""


@dataclass(slots=True, kw_only=True, eq=False)
class Helper:
    """A process that prices plans, one after another."""

    process: SpawnProcess
    """It."""
    link: Connection
    """Takes questions, gives their answers in the same order."""
    questions: deque[object] = field(default_factory=deque)
    """What it is at, and what it will be at then."""


@dataclass(slots=True, kw_only=True, eq=False)
class Ahead:
    """Prices in the making."""

    helpers: list[Helper]
    """Who makes them; those that died are taken out."""
    answers: dict[Question, object] = field(default_factory=dict)
    """Those that nobody has asked for yet; None = an error, which the search makes itself, and tells."""

    def know(self, recorded: Recorded, cluster: Cluster, model: TimeModel) -> None:
        """Give the helpers the step that is to be priced."""
        for helper in list(self.helpers):
            self._ask(helper, "the step", (recorded, cluster, model))

    def begin(self, question: Question, asked: Plan | Choice) -> None:
        """Ask for an answer, if some helper is free; `asked` is the plan or, for `exact`, the choice."""
        if self.is_begun(question):
            return
        for helper in list(self.helpers):
            if len(helper.questions) < _IN_ADVANCE and "the step" not in helper.questions:
                self._ask(helper, question, (question, asked))
                return

    def is_begun(self, question: Question) -> bool:
        """Whether it was asked for, or is there."""
        return self.is_awaited(question) or question in self.answers

    def is_awaited(self, question: Question) -> bool:
        """Whether some helper is still at it, or will be."""
        for helper in list(self.helpers):
            while helper.questions and self._has_answer(helper):
                self._hear(helper)
        return any(question in helper.questions for helper in self.helpers)

    def keep(self, question: Question, answer: object) -> None:
        """What the search itself made of it while it waited."""
        self.answers[question] = answer

    def answer(self, question: Question) -> object:
        """What came of it, waited for and told once; None if it was not begun, or is an error."""
        for helper in list(self.helpers):
            while question in helper.questions:
                self._hear(helper)
        return self.answers.pop(question, None)

    def _has_answer(self, helper: Helper) -> bool:
        """Also where it has died: `_hear` finds out."""
        try:
            return helper.link.poll()
        except _GONE:
            return True

    def _ask(self, helper: Helper, question: object, words: object) -> None:
        try:
            helper.link.send(words)
            helper.questions.append(question)
        except _GONE:
            self._lose(helper)

    def _hear(self, helper: Helper) -> None:
        """Take the answer to its first question, once it is there."""
        try:
            answer = helper.link.recv()
        except _GONE:
            self._lose(helper)
            return
        question = helper.questions.popleft()
        if isinstance(question, tuple):
            self.answers[cast("Question", question)] = answer

    def _lose(self, helper: Helper) -> None:
        """The search does it all itself from here on."""
        helper.questions.clear()
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
            link.send(answer_of(costs, *link.recv()))


def answer_of(costs: Costs, question: Question, asked: Plan | Choice) -> object:
    """The answer to a question; None for an error."""
    from dnnmem.estimator.search import priced_exactly

    kind, plan, budget = question
    try:
        if kind == "runs":
            return costs.by_runs(plan), costs.lasting.get(plan)
        if kind == "exact":
            return priced_exactly(costs, cast("Choice", asked), budget)
        return (costs.planned(plan, budget).remat,)
    except InfeasibleError:
        return (None,) if kind == "remat" else None
    except DnnmemError:
        return None
