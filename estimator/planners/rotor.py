"""Rotor: which blocks to compute again, so that a chain fits a budget at the least cost in seconds.

Beaumont, Eyraud-Dubois, Herrmann, Joly and Shilova 2019, "Optimal checkpointing for heterogeneous chains". C(s, t, m)
is the least time to run the stages s..t forward and backward in m bytes, the input of s being there besides:

    keep all of s         f_s + C(s+1, t, m - saved_s) + b_s
    keep the input only   f_s + ... + f_{u-1} + C(u, t, m - input_u) + C(s, u-1, m - left_{u..t}),   s < u <= t

The second way is a run s..u-1 that is computed again, by the plan of C(s, u-1). Gradients of parameters, which stay as
the backward pass goes on, are charged to what comes after them. Bytes are rounded up to slots of the budget.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.planners.chain import Chain, Stage
from dnnmem.estimator.segments import Run

SLOTS = 500
"""Parts that a budget is divided into, or more:"""
SLOTS_OF_A_STAGE = 16
"""What most stages save is that many slots at least, and exactly a number of them."""
_MANY = 5000
"""Stages from .. to that differ, above which it is `SLOTS` alone."""
_Key: TypeAlias = tuple[int, int]
_Row: TypeAlias = npt.NDArray[np.float64]
_Rows: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Solutions of a chain for all budgets up to one."""

    chain: Chain
    """What was planned."""
    slot_bytes: float
    """Bytes of a slot."""
    longest: int
    """Most blocks of a run."""
    costs: Costs
    """The chain's numbers in slots."""
    seconds: list[_Rows]
    """seconds[s][t - s, m] = C(s, t, m), budgets in slots; infinite where it does not fit. Without runs longer than
    `longest` of stages before the last one."""
    ahead: list[_Rows]
    """ahead[t][u, m] = C(u, t, m - input_u) and the forward passes of all stages before u."""
    scratch: _Rows
    """Where sums are made."""

    @property
    def rows(self) -> int:
        """Budgets, 0 among them."""
        return int(self.seconds[0].shape[1])

    def seconds_at(self, budget_bytes: float) -> float:
        """Of the step within `budget_bytes` above what lives when it begins; infinite if it does not fit."""
        m = self.slot(budget_bytes)
        return float(self.seconds[0][-1][m]) if m >= 0 else float("inf")

    def least_bytes(self) -> float:
        """The smallest budget that the step fits in; infinite if none up to the table's does."""
        fits = np.flatnonzero(np.isfinite(self.seconds[0][-1]))
        return float((fits[0] + 0.5) * self.slot_bytes) if fits.size else float("inf")

    def runs(self, budget_bytes: float) -> tuple[Run, ...]:
        """What the fastest step that fits computes again; to be asked where `seconds_at` is finite."""
        return self.runs_of(0, len(self.chain.stages) - 1, self.slot(budget_bytes))

    def slot(self, budget_bytes: float) -> int:
        """The budget in slots, rounded down; -1 for one below nothing."""
        return min(int(budget_bytes / self.slot_bytes), self.rows - 1) if budget_bytes >= 0 else -1

    def runs_of(self, s: int, t: int, m: int) -> tuple[Run, ...]:
        """Of the stages `s` to `t` within `m` slots, where that is possible."""
        found: list[Run] = []
        stages, costs = self.chain.stages, self.costs
        while s < t:
            u = self._next(s, t, m)
            if not u:
                m -= costs.saved[s]
                s += 1
                continue
            first, last = stages[s].block, stages[u - 1].block
            if first is not None and last is not None:
                found.append(Run(first=first, last=last, inner=self.runs_of(s, u - 1, m - costs.left(u, t + 1))))
            m -= costs.input[u]
            s = u
        return tuple(found)

    def _next(self, s: int, t: int, m: int) -> int:
        """Where the run that begins with `s` ends, or 0 where all of `s` is kept."""
        again = _again(self, s, t)
        kept = _kept(self, s, t)[m]
        if not len(again):
            return 0
        best = int(again[:, m].argmin())
        return s + 1 + best if again[best, m] < kept else 0


@lru_cache(maxsize=8)
def solve(chain: Chain, budget_bytes: float, *, slot_bytes: float | None = None, longest: int | None = None) -> Table:
    """The best plans of `chain` for all budgets up to `budget_bytes`, which leaves out what lives before the step.

    Args: `slot_bytes`: None chooses it; `longest`: most blocks of a run, None for any number.
    """
    keys = _keys(chain)
    slot_bytes = slot_bytes or _slot_bytes(chain, budget_bytes, len(set(keys.values())))
    rows = int(budget_bytes / slot_bytes) + 1
    count = len(chain.stages)
    table = Table(
        chain=chain, slot_bytes=slot_bytes, longest=longest or count, costs=Costs(chain, slot_bytes),
        seconds=[np.empty((count - s, rows)) for s in range(count)],
        ahead=[np.empty((t + 1, rows)) for t in range(count)], scratch=np.empty((count, rows)),
    )  # fmt: skip
    for length in range(count):
        for s in range(count - length):
            t = s + length
            if t < count - 1 and length >= table.longest:  # within no run
                continue
            first, _ = keys[s, t]
            row = table.seconds[s][length]
            row[:] = _best(table, s, t) if first == s or t == count - 1 else table.seconds[first][length]
            table.ahead[t][s] = _shifted(row, table.costs.input[s])
            table.ahead[t][s] += table.costs.before[s]
    return table


def _slot_bytes(chain: Chain, budget_bytes: float, subchains: int) -> float:
    saved = Counter(stage.saved_bytes for stage in chain.stages if stage.block is not None and stage.saved_bytes)
    if not saved or subchains > _MANY:
        return budget_bytes / SLOTS
    most = saved.most_common(1)[0][0]
    return most / max(math.ceil(most * SLOTS / budget_bytes), SLOTS_OF_A_STAGE)


class Costs:
    """The numbers of a chain, in seconds and slots."""

    def __init__(self, chain: Chain, slot_bytes: float) -> None:
        """Round the bytes of `chain` up to slots."""
        stages = chain.stages
        self.before = [0.0]
        """Seconds of the forward passes before each stage."""
        self._left = [0]
        for stage in stages:
            self.before.append(self.before[-1] + stage.forward_seconds)
            self._left.append(self._left[-1] + stage.left_bytes)
        self.slot_bytes = slot_bytes
        self.input = [self.slots(stage.input_bytes) for stage in stages]
        """What enters each stage."""
        self.saved = [self.slots(stage.saved_bytes) for stage in stages]
        """What each saves."""
        self.light = [self._lights(stages, s) for s in range(len(stages))]
        """light[s][j]: peak of the forward pass of the run s..s+j, in bytes; as long as runs may be."""

    def slots(self, nbytes: float) -> int:
        """`nbytes` rounded up."""
        return int(-(-nbytes // self.slot_bytes))

    def left(self, first: int, end: int) -> int:
        """What the backward passes of these stages leave."""
        return self.slots(self._left[end] - self._left[first])

    def _lights(self, stages: Sequence[Stage], s: int) -> list[int]:
        found: list[int] = []
        for stage in stages[s:]:
            if stage.block is None or (found and not stage.follows):
                break
            light = stage.light_bytes + (stage.input_bytes if found else 0)
            found.append(max(light, found[-1]) if found else light)
        return found


def _best(table: Table, s: int, t: int) -> _Row:
    """C(s, t, m) for all m."""
    best = _kept(table, s, t)
    again = _again(table, s, t)
    if len(again):
        np.minimum(best, again.min(axis=0), out=best)
    return best


def _kept(table: Table, s: int, t: int) -> _Row:
    """The same where all of `s` is kept. A run that is computed again ends with what its last stage has to."""
    stages, costs = table.chain.stages, table.costs
    stage = stages[s]
    own = stage.forward_seconds + stage.backward_seconds
    found = np.full(table.rows, np.inf)
    least = max(
        costs.slots(stages[t].gradient_bytes + stage.forward_bytes),
        costs.left(s + 1, t + 1) + costs.slots(stage.backward_bytes),
    )
    if s == t:
        found[least:] = own if t == len(stages) - 1 else own - stage.spared_seconds
    else:
        found[least:] = _shifted(table.seconds[s + 1][t - s - 1], costs.saved[s])[least:] + own
    return found


def _again(table: Table, s: int, t: int) -> _Rows:
    """The same for each run that may begin with `s`: s alone, s and s + 1, ...; until it is asked again."""
    costs, rows = table.costs, table.rows
    count = min(t - s, table.longest, len(costs.light[s]))
    found = np.subtract(table.ahead[t][s + 1 : s + 1 + count], costs.before[s], out=table.scratch[:count])
    lefts = [costs.left(u, t + 1) for u in range(s + 1, s + 1 + count)]
    for left, first, end in _equal(lefts):
        found[first:end, left:] += table.seconds[s][first:end, : max(rows - left, 0)]
        found[first:end, :left] = np.inf
    gradient = table.chain.stages[t].gradient_bytes
    for light, first, _ in _equal([costs.slots(gradient + light) for light in costs.light[s][:count]]):
        found[first:, :light] = np.inf
    return found


def _equal(values: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches of equal values: value, first index, end."""
    first = 0
    for k in range(1, len(values) + 1):
        if k == len(values) or values[k] != values[first]:
            yield values[first], first, k
            first = k


def _shifted(row: _Row, slots: int) -> _Row:
    """Seconds if `slots` of the budget are gone."""
    if not slots:
        return row
    found = np.full(len(row), np.inf)
    if slots < len(row):
        found[slots:] = row[:-slots]
    return found


def _keys(chain: Chain) -> dict[_Key, _Key]:
    """Equal stages are planned once: a subchain of them is known by its length."""
    stages = chain.stages
    alike: dict[tuple[float | bool, ...], int] = {}
    kinds = [alike.setdefault(_numbers(stage), len(alike)) for stage in stages]
    keys: dict[_Key, _Key] = {}
    first: dict[tuple[int, int], int] = {}
    for s, kind in enumerate(kinds):
        uniform = True
        for t in range(s, len(stages)):
            uniform = uniform and kinds[t] == kind
            begin = first.setdefault((kind, t - s), s) if uniform else s
            keys[s, t] = (begin, begin + t - s)
    return keys


def _numbers(stage: Stage) -> tuple[float | bool, ...]:
    return (
        stage.block is None, stage.follows, stage.forward_seconds, stage.backward_seconds, stage.input_bytes,
        stage.saved_bytes, stage.gradient_bytes, stage.left_bytes, stage.light_bytes, stage.forward_bytes,
        stage.backward_bytes, stage.spared_seconds,
    )  # fmt: skip
