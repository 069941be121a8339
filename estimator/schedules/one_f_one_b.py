"""1F1B with a flush (Narayanan et al. 2021, arXiv 2104.04473): rank r holds at most stages - r micro-batches.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(3, 4)))
0  F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
1  .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
2  .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .
"""

from __future__ import annotations

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.schedules.grid import Grid, Step


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks. Raises `UsageError` for more than one chunk a rank."""
    if chunks != 1:
        raise UsageError(f"1f1b has 1 chunk a rank, not {chunks}", hint="pipeline.schedule=interleaved has several")
    return tuple(_rank(stages - rank - 1, microbatches) for rank in range(stages))


def _rank(warmup: int, microbatches: int) -> tuple[Step, ...]:
    w, m = min(warmup, microbatches), microbatches
    steps = [Step("F", i, 0) for i in range(w)]
    for i in range(m):
        if w + i < m:
            steps.append(Step("F", w + i, 0))
        steps.append(Step("B", i, 0))
    return tuple(steps)
