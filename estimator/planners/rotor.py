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
_Key: TypeAlias = tuple[int, int]
_Row: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Solutions of a chain for all budgets up to one."""

    chain: Chain
    """What was planned."""
    slot_bytes: float
    """Bytes of a slot."""
    keys: dict[_Key, _Key]
    """(s, t) -> the first subchain that is like it."""
    seconds: dict[_Key, _Row]
    """By subchain and budget in slots; infinite where it does not fit."""
    choices: dict[_Key, npt.NDArray[np.int16]]
    """u - s, or 0 where all of s is kept."""

    def seconds_at(self, budget_bytes: float) -> float:
        """Of the step within `budget_bytes` above what lives when it begins; infinite if it does not fit."""
        m = self._slot(budget_bytes)
        return float(self.seconds[self.keys[0, len(self.chain.stages) - 1]][m]) if m >= 0 else float("inf")

    def least_bytes(self) -> float:
        """The smallest budget that the step fits in; infinite if none up to the table's does."""
        row = self.seconds[self.keys[0, len(self.chain.stages) - 1]]
        fits = np.flatnonzero(np.isfinite(row))
        return float((fits[0] + 0.5) * self.slot_bytes) if fits.size else float("inf")

    def runs(self, budget_bytes: float) -> tuple[Run, ...]:
        """What the fastest step that fits computes again; to be asked where `seconds_at` is finite."""
        return self._runs(0, len(self.chain.stages) - 1, self._slot(budget_bytes))

    def _slot(self, budget_bytes: float) -> int:
        rows = len(next(iter(self.seconds.values())))
        return min(int(budget_bytes / self.slot_bytes), rows - 1) if budget_bytes >= 0 else -1

    def _runs(self, s: int, t: int, m: int) -> tuple[Run, ...]:
        found: list[Run] = []
        stages = self.chain.stages
        while s < t:
            ahead = int(self.choices[self.keys[s, t]][m])
            if not ahead:
                m -= _slots(stages[s].saved_bytes, self.slot_bytes)
                s += 1
                continue
            u = s + ahead
            left = _slots(sum(stage.left_bytes for stage in stages[u : t + 1]), self.slot_bytes)
            first, last = stages[s].block, stages[u - 1].block
            if first is not None and last is not None:
                found.append(Run(first=first, last=last, inner=self._runs(s, u - 1, m - left)))
            m -= _slots(stages[u].input_bytes, self.slot_bytes)
            s = u
        return tuple(found)


@lru_cache(maxsize=8)
def solve(chain: Chain, budget_bytes: float, *, slot_bytes: float | None = None, longest: int | None = None) -> Table:
    """The best plans of `chain` for all budgets up to `budget_bytes`, which leaves out what lives before the step.

    Args: `slot_bytes`: None chooses it; `longest`: most blocks of a run, None for any number.
    """
    slot_bytes = slot_bytes or _slot_bytes(chain, budget_bytes)
    slots = int(budget_bytes / slot_bytes)
    keys = _keys(chain)
    table = Table(chain=chain, slot_bytes=slot_bytes, keys=keys, seconds={}, choices={})
    costs = _Costs(chain, slot_bytes)
    count = len(chain.stages)
    for length in range(count):
        for s in range(count - length):
            t = s + length
            if keys[s, t] == (s, t):
                table.seconds[s, t], table.choices[s, t] = _best(
                    table, costs, s, t, rows=slots + 1, longest=longest or count
                )
    return table


def _slot_bytes(chain: Chain, budget_bytes: float) -> float:
    saved = Counter(stage.saved_bytes for stage in chain.stages if stage.block is not None and stage.saved_bytes)
    if not saved:
        return budget_bytes / SLOTS
    most = saved.most_common(1)[0][0]
    return most / max(math.ceil(most * SLOTS / budget_bytes), SLOTS_OF_A_STAGE)


class _Costs:
    """The numbers of a chain, in slots."""

    def __init__(self, chain: Chain, slot_bytes: float) -> None:
        stages = chain.stages
        self.seconds = [0.0]
        self.left_bytes = [0]
        for stage in stages:
            self.seconds.append(self.seconds[-1] + stage.forward_seconds)
            self.left_bytes.append(self.left_bytes[-1] + stage.left_bytes)
        self.slot_bytes = slot_bytes
        self.input = [_slots(stage.input_bytes, slot_bytes) for stage in stages]
        self.saved = [_slots(stage.saved_bytes, slot_bytes) for stage in stages]

    def left(self, first: int, end: int) -> int:
        """What the backward passes of these stages leave."""
        return _slots(self.left_bytes[end] - self.left_bytes[first], self.slot_bytes)


def _best(
    table: Table, costs: _Costs, s: int, t: int, *, rows: int, longest: int
) -> tuple[_Row, npt.NDArray[np.int16]]:
    """C(s, t, m) for all m, and how it is reached."""
    stages = table.chain.stages
    stage, gradient = stages[s], stages[t].gradient_bytes
    slots = costs.slot_bytes
    own = stage.forward_seconds + stage.backward_seconds
    best = np.full(rows, np.inf)
    choice = np.zeros(rows, np.int16)
    least = max(
        _slots(gradient + stage.forward_bytes, slots), costs.left(s + 1, t + 1) + _slots(stage.backward_bytes, slots)
    )
    if s == t:
        best[least:] = own
        return best, choice
    behind = table.seconds[table.keys[s + 1, t]]
    best[least:] = _shifted(behind, costs.saved[s])[least:] + own
    light = 0
    for u in range(s + 1, min(t, s + longest) + 1):
        last = stages[u - 1]
        if last.block is None or (u - 1 > s and not last.follows):
            break
        light = max(light, gradient + last.light_bytes + (last.input_bytes if u - 1 > s else 0))
        ahead = _shifted(table.seconds[table.keys[u, t]], costs.input[u])
        again = _shifted(table.seconds[table.keys[s, u - 1]], costs.left(u, t + 1))
        found = ahead + again
        found += costs.seconds[u] - costs.seconds[s]
        found[: _slots(light, slots)] = np.inf
        better = found < best
        best[better] = found[better]
        choice[better] = u - s
    return best, choice


def _shifted(row: _Row, slots: int) -> _Row:
    """Seconds if `slots` of the budget are gone."""
    if not slots:
        return row
    found = np.full(len(row), np.inf)
    if slots < len(row):
        found[slots:] = row[:-slots]
    return found


def _slots(nbytes: float, slot_bytes: float) -> int:
    return int(-(-nbytes // slot_bytes))


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
        stage.backward_bytes,
    )  # fmt: skip
