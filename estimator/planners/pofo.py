"""POFO: what each block saves is kept, computed again, or sent to the host, so that the step costs the fewest seconds.

Beaumont, Eyraud-Dubois and Shilova 2021, "Efficient combination of rematerialization and offloading". A unit is a stage
that is kept or sent, or a run that is computed again, whose input is kept or sent. What a unit sends leaves while the
next one runs forward, and returns while that runs backward: it takes memory T and the link for x seconds there.

    P(s, m, T)   least seconds of the stages from s on in m bytes, the unit before having sent T
    keep   max(f_s, x) + P(s+1, m - saved_s, 0) + max(b_s, x)
    send   the same with P(s+1, m - stays_s + takes_s, sent_s)
    run    max(f_s + .. + f_{u-1}, x) + P(u, m - input_u, 0) + max(C(s, u-1, m - left - T), x)        C is Rotor's
    send   the same with P(u, m - input_u + input_s, input_s): its input

`takes` was made before and goes with what is sent; where the stage before keeps it too, it stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.planners.chain import Chain, Stage
from dnnmem.estimator.planners.rotor import Table
from dnnmem.estimator.segments import Run

_Row: TypeAlias = npt.NDArray[np.float64]
_SIZES = 8
"""Inputs of runs that may be on their way differ in so many sizes at most; others count as the next larger one."""


class State(NamedTuple):
    """What the unit before leaves to this one."""

    stage: int
    """First stage of this unit."""
    sent_bytes: int
    """What the unit before sent."""
    shared: bool
    """True if it keeps what both save: that stays then."""


class Step(NamedTuple):
    """A unit, and how it is treated."""

    end: int
    """The stage behind it."""
    again: bool
    """It is a run that is computed again."""
    sends: bool
    """What it saves goes to the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What is done with a chain."""

    runs: tuple[Run, ...]
    """Computed again."""
    sent: tuple[int, ...]
    """Blocks that send what they save; for a run, its first."""


@dataclass(kw_only=True, eq=False)
class Pofo:
    """Solutions of a chain for all budgets up to one: P by state, as far as it was asked for."""

    table: Table
    """Rotor's for the same chain and budgets."""
    bytes_per_s: float
    """Of the link to the host, each way."""
    runs: bool = True
    """False: nothing is computed again."""
    sends: bool = True
    """False: nothing is sent."""
    tapes: bool = True
    """False: of what is sent, only inputs of runs."""
    known: dict[State, _Row] = field(default_factory=dict)
    """P(s, m, T) for all m in slots."""

    def seconds(self) -> _Row:
        """Of the step, by budget in slots; infinite where it does not fit."""
        return _moved(self.row(_FIRST), self._crumbs)

    def schedule(self, m: int) -> Schedule:
        """The fastest within `m` slots; to be asked where that is possible."""
        runs: list[Run] = []
        sent: list[int] = []
        state, stages = _FIRST, self._stages
        m -= self._crumbs
        while state.stage < len(stages):
            step = min(self._steps(state), key=lambda step: self.by(state, step)[m])
            first = stages[state.stage].block
            if step.again and first is not None:
                inner = self.table.runs_of(state.stage, step.end - 1, m - self._held(state, step.end))
                runs.append(Run(first=first, last=first + step.end - state.stage - 1, inner=inner))
            if step.sends and first is not None:
                sent.append(first)
            m = min(m - self._kept(state, step), self.table.rows - 1)
            state = self._next(state, step)
        return Schedule(runs=tuple(runs), sent=tuple(sent))

    def row(self, state: State) -> _Row:
        """P of a state."""
        if state not in self.known:
            for some in reversed(self._reached(state)):
                found = np.full(self.table.rows, np.inf)
                for step in self._steps(some):
                    np.minimum(found, self.by(some, step), out=found)
                self.known[some] = found
        return self.known[state]

    def _reached(self, state: State) -> list[State]:
        """That one and all that may come behind it, by stage."""
        levels: list[dict[State, None]] = [{} for _ in range(len(self._stages) + 1)]
        levels[state.stage][state] = None
        for level in levels[:-1]:
            for some in level:
                for step in self._steps(some):
                    levels[step.end][self._next(some, step)] = None
        return [some for level in levels[:-1] for some in level]

    def by(self, state: State, step: Step) -> _Row:
        """P of a state if its unit is `step`."""
        s, stages, costs = state.stage, self._stages, self.table.costs
        stage, travel = stages[s], 0.0 if self._is_between(s) else state.sent_bytes / self.bytes_per_s
        if step.end < len(stages):
            found = _moved(self.known[self._next(state, step)], self._kept(state, step))
        else:
            found = np.zeros(self.table.rows)
        gradient = stages[-1].gradient_bytes
        if step.again:
            forward = costs.before[step.end] - costs.before[s]
            light = costs.slots(gradient + costs.light[s][step.end - s - 1] + state.sent_bytes)
            back = _moved(self.table.seconds[s][step.end - s - 1], self._held(state, step.end))
            found = found + max(forward, travel) + np.maximum(back, travel)
            found[:light] = np.inf
            return found
        found = found + (max(stage.forward_seconds, travel) + max(stage.backward_seconds, travel))
        left = costs.left(s + 1, len(stages))
        least = max(
            costs.slots(gradient + stage.forward_bytes + state.sent_bytes),
            left + costs.slots(stage.backward_bytes + state.sent_bytes),
        )
        found[:least] = np.inf
        return found

    def _steps(self, state: State) -> Iterator[Step]:
        """Units that may begin here. The last block keeps what it saves, as do stages that are no blocks."""
        s = state.stage
        may_send = self.sends and self._stages[s].block is not None
        yield Step(s + 1, again=False, sends=False)
        if may_send and self.tapes and s < self._last_block and self._stages[s].sent_bytes:
            yield Step(s + 1, again=False, sends=True)
        if not self.runs:
            return
        for count in range(1, min(len(self.table.costs.light[s]), self.table.longest) + 1):
            yield Step(s + count, again=True, sends=False)
            if may_send and s + count <= self._last_block and self._stages[s].input_bytes:
                yield Step(s + count, again=True, sends=True)

    def _next(self, state: State, step: Step) -> State:
        stage = self._stages[state.stage]
        if step.again:
            return State(step.end, self._size(stage.input_bytes) if step.sends else 0, shared=False)
        if self._is_between(state.stage):
            return State(step.end, state.sent_bytes, shared=True)
        return State(step.end, stage.sent_bytes if step.sends else 0, shared=not step.sends)

    def _is_between(self, s: int) -> bool:
        """Copies do not wait for a stage that is no block."""
        return self._stages[s].block is None and s < self._last_block

    def _kept(self, state: State, step: Step) -> int:
        """Slots that a unit takes until its backward pass, or fewer than none. Crumbs are charged together."""
        nbytes = self._kept_bytes(state, step)
        if nbytes < self._crumb:
            return -int(-nbytes // self.table.slot_bytes) if nbytes < 0 else 0
        return self.table.costs.slots(nbytes)

    def _kept_bytes(self, state: State, step: Step) -> int:
        stage = self._stages[state.stage]
        taken = stage.sent_input_bytes + (0 if state.shared else stage.sent_shared_bytes)
        if step.again:
            return self._stages[step.end].input_bytes - (min(taken, stage.input_bytes) if step.sends else 0)
        return stage.saved_bytes - (stage.sent_own_bytes + taken if step.sends else 0)

    def _held(self, state: State, end: int) -> int:
        """Slots that a run leaves to others while it is computed again."""
        costs = self.table.costs
        return costs.left(end, len(self._stages)) + costs.slots(state.sent_bytes)

    @cached_property
    def _stages(self) -> tuple[Stage, ...]:
        return self.table.chain.stages

    @cached_property
    def _crumb(self) -> float:
        """What is kept counts from here on: all crumbs of a chain are one slot."""
        return self.table.slot_bytes / len(self._stages)

    @cached_property
    def _crumbs(self) -> int:
        """Slots that crumbs are charged with: none where there are none."""
        return int(self._crumb > 1)

    @cached_property
    def _last_block(self) -> int:
        """Its stage."""
        return max((k for k, stage in enumerate(self._stages) if stage.block is not None), default=-1)

    @cached_property
    def _sizes(self) -> list[int]:
        return _few(self.table.chain)

    def _size(self, nbytes: int) -> int:
        return next(size for size in self._sizes if size >= nbytes)


_FIRST = State(0, 0, shared=True)


def _few(chain: Chain) -> list[int]:
    """Sizes of inputs, or as many of them, the largest among them."""
    sizes = sorted({stage.input_bytes for stage in chain.stages})
    step = math.ceil(len(sizes) / _SIZES)
    return sizes[::-1][::step][::-1]


def _moved(row: _Row, slots: int) -> _Row:
    """Seconds if `slots` of the budget are gone, or there besides; no more is counted than the budget's."""
    if not slots:
        return row
    if slots < 0:
        return np.concatenate((row[-slots:], np.full(min(-slots, len(row)), row[-1])))
    found = np.full(len(row), np.inf)
    if slots < len(row):
        found[slots:] = row[:-slots]
    return found
