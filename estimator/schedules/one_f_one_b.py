"""1F1B with a flush: PipeDream-Flush (Narayanan et al. 2021, arXiv 2104.04473), DAPPLE (Fan et al. 2021, 2007.01045).

A backward goes before the next forward as soon as there is one: rank r holds at most stages - r micro-batches.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(3, 4)))
0  F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
1  .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
2  .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .
"""

from __future__ import annotations

from dnnmem.estimator.schedules.grid import Grid, Row, Step, looped
from dnnmem.estimator.schedules.limits import one_chunk


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks. Raises `UsageError` for more than one chunk a rank."""
    one_chunk("1f1b", chunks)
    return Grid(ranks=rows(stages, microbatches), stages=looped(stages))


def rows(stages: int, microbatches: int) -> tuple[Row, ...]:
    """The same, for schedules that differ in what they do with the weights."""
    return tuple(_rank(stages - rank - 1, microbatches) for rank in range(stages))


def held(stages: int, microbatches: int) -> tuple[int, ...]:
    """Micro-batches that each rank holds at most."""
    return tuple(min(stages - rank, microbatches) for rank in range(stages))


def _rank(warmup: int, microbatches: int) -> Row:
    w, m = min(warmup, microbatches), microbatches
    steps = [Step("F", i, 0) for i in range(w)]
    for i in range(m):
        if w + i < m:
            steps.append(Step("F", w + i, 0))
        steps.append(Step("B", i, 0))
    return tuple(steps)
