"""Unrolled recurrent networks: which time steps keep their state, which all that they make (Gruslys et al. 2016).

"Memory-efficient backpropagation through time", mixed storage. C(t, m): least seconds of t equal steps, forward and
backward, in m bytes beside the state that enters; h bytes of a state, a of all that a step keeps:

    keep a state       y f + C(t - y, m - h) + C(y, m),   1 <= y < t        the first y steps are computed again
    keep everything    f + C(t - 1, m - a) + b              of the first step

The steps of a real trace differ at both ends, so that each schedule is held against the trace itself.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.time_steps import as_steps, cell_of
from dnnmem.estimator.plan import Remat
from dnnmem.estimator.planners.chain import Stage
from dnnmem.estimator.planners.chain_plans import PLANS, as_found
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner
from dnnmem.estimator.segments import Run

_SLOTS = 500
_WRITTEN_OUT = (
    "predicted: its time steps are no calls of one module; put runs of them into functions, and "
    "torch.utils.checkpoint around these"
)


@dataclass(kw_only=True, eq=False)
class Steps:
    """Equal time steps, in slots of memory; C by number of steps."""

    state: int
    """h."""
    internal: int
    """a."""
    forward_seconds: float
    """f."""
    backward_seconds: float
    """b."""
    slots: int
    """m at most."""
    light: int = 0
    """Least m in which a step runs forward and keeps nothing but its state."""
    heavy: int = 0
    """Least m in which a step runs forward and backward with all that it keeps."""
    known: list[npt.NDArray[np.float64]] = field(default_factory=list)
    """C(t + 1, m) for all m."""

    def seconds(self, t: int) -> npt.NDArray[np.float64]:
        """C(t, m) for all m."""
        while len(self.known) < t:
            count = len(self.known) + 1
            self.known.append(np.minimum(self._all(count), self._states(count).min(axis=0, initial=np.inf)))
        return self.known[t - 1]

    def schedule(self, t: int, m: int, first: int = 0) -> tuple[Run, ...]:
        """What is computed again of the steps from `first` on; to be asked where C(t, m) is finite."""
        self.seconds(t)
        found: list[Run] = []
        while t > 1:
            states = self._states(t)[:, m]
            if states.min() >= self._all(t)[m]:
                first, t, m = first + 1, t - 1, m - self.internal
                continue
            y = int(states.argmin()) + 1
            found.append(Run(first=first, last=first + y - 1, inner=self.schedule(y, m, first)))
            first, t, m = first + y, t - y, m - self.state
        return tuple(found)

    def _all(self, t: int) -> npt.NDArray[np.float64]:
        """The first step keeps everything."""
        found = np.full(self.slots + 1, np.inf)
        behind = _shifted(self.known[t - 2], self.internal) if t > 1 else np.zeros(self.slots + 1)
        least = max(self.heavy, self.internal)
        found[least:] = behind[least:] + self.forward_seconds + self.backward_seconds
        return found

    def _states(self, t: int) -> npt.NDArray[np.float64]:
        """The first 1, 2, ... t - 1 steps keep the state that enters them."""
        found = np.full((t - 1, self.slots + 1), np.inf)
        for y in range(1, t):
            sum_ = _shifted(self.known[t - y - 1], self.state) + self.known[y - 1] + y * self.forward_seconds
            found[y - 1, self.light :] = sum_[self.light :]
        return found


def _shifted(row: npt.NDArray[np.float64], slots: int) -> npt.NDArray[np.float64]:
    found = np.full(len(row), np.inf)
    found[slots:] = row[: max(len(row) - slots, 0)]
    return found


def find(problem: Problem) -> Found:
    """The fastest schedule of time steps that fits: runs of calls of a cell, where each step is one, else predicted."""
    steps = problem.once("time steps", lambda: _as_steps(problem))
    steps = replace(steps, budget_bytes=problem.budget_bytes)
    found = cheapest(steps, steps.once("gruslys", lambda: plans(steps)), what="schedule of time steps")
    count = sum(stage.block is not None for stage in steps.chain().stages)
    cell = cell_of(problem.recorded)
    if cell:
        text = found.remat.segments or ",".join(map(str, range(count))) * (found.remat.policy == "full")
        return Found(remat=Remat(policy="segments", segments=text, cell=cell) if text else Remat())
    text = found.remat.segments or ("every step keeps its state" if found.remat.policy == "full" else "nothing")
    return Found(
        cost=steps.cost(found), schedule=f"of {count} time steps, computed again as runs: {text}",
        notes=(_WRITTEN_OUT,),
    )  # fmt: skip


def _as_steps(problem: Problem) -> Problem:
    recorded = as_steps(problem.recorded)
    trace = recorded if problem.trace is problem.recorded else as_steps(problem.trace)
    return replace(problem, recorded=recorded, trace=trace, known={}, made={})


def plans(problem: Problem) -> list[Found]:
    """Mixed storage of a step in blocks, for budgets all over the range."""
    stages = [stage for stage in problem.chain().stages if stage.block is not None]
    step = Counter(stages and map(_plain, stages)).most_common(1)[0][0]
    count, most = len(stages), max(step.saved_bytes, 1) * (len(stages) + 2)
    slot = most / _SLOTS
    table = Steps(
        state=_slots(step.input_bytes, slot), internal=_slots(step.saved_bytes, slot),
        forward_seconds=step.forward_seconds, backward_seconds=step.backward_seconds, slots=_SLOTS,
        light=_slots(step.light_bytes, slot), heavy=_slots(max(step.forward_bytes, step.backward_bytes), slot),
    )  # fmt: skip
    fits = np.flatnonzero(np.isfinite(table.seconds(count)))
    if not fits.size:
        return []
    slots = dict.fromkeys(int(m) for m in np.linspace(fits[0], fits[-1], PLANS).round())
    return [as_found(problem, runs) for runs in dict.fromkeys(table.schedule(count, m) for m in slots)]


def _plain(stage: Stage) -> Stage:
    return replace(stage, block=0, follows=True)


def _slots(nbytes: float, slot_bytes: float) -> int:
    return int(-(-nbytes // slot_bytes))


def suits(problem: Problem) -> str:
    """For every unrolled recurrent network; what runs through a list of blocks once is planned by others."""
    try:
        stages = problem.once("time steps", lambda: _as_steps(problem)).chain().stages
    except UnsupportedError:
        return ""
    return f"it is a recurrent network, unrolled over {sum(stage.block is not None for stage in stages)} time steps"


PLANNER = Planner(
    name="gruslys", words="time steps that keep their state, or everything (Gruslys et al. 2016)",
    needs="a recurrent cell that is called for each time step", find=find, suits=suits,
)  # fmt: skip
