"""The steps of a rank, written in phases: each takes the next micro-batch of a chunk, until there is none.

>>> steps = Counted(((0, 1), (2, 3)))
>>> steps.take("F0 F1", 3)
>>> [f"{s.phase}{s.microbatch}" for s in steps.row]
['F0', 'F2', 'F1', 'F3']
"""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.estimator.schedules.grid import Step


class Counted:
    """A row that grows; `B` and `I` count as one, being the backward of a micro-batch."""

    def __init__(self, microbatches: tuple[Sequence[int], ...]) -> None:
        """Start with none of the `microbatches` of each chunk."""
        self.row: list[Step] = []
        self._lists = microbatches
        self._taken: dict[tuple[str, int], int] = {}
        self._waiting: list[Step] = []

    def take(self, words: str, times: int = 1) -> None:
        """Repeat steps such as `F0 I1 W1`, phase and chunk; `W` alone is the oldest that waits."""
        for _ in range(times):
            for word in words.split():
                self._one(word)

    def left(self, phase: str, chunk: int) -> int:
        """Micro-batches whose `phase` is still to come."""
        return len(self._lists[chunk]) - self._taken.get((phase, chunk), 0)

    def _one(self, word: str) -> None:
        if word == "W":
            self.row.append(self._waiting.pop(0))
            return
        phase, chunk = word[0], int(word[1:])
        key = ("B" if phase == "I" else phase, chunk)
        if not self.left(*key):
            return
        number = self._taken.get(key, 0)
        self._taken[key] = number + 1
        step = Step(phase, self._lists[chunk][number], chunk)
        self.row.append(step)
        if phase == "I":
            self._waiting.append(step._replace(phase="W"))
        elif phase == "W":
            self._waiting.remove(step)
