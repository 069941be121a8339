"""GPipe (Huang et al. 2019, arXiv 1811.06965): all forwards, then all backwards; every micro-batch is held until then.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(3, 3)))
0  F0 F1 F2 .  .  .  .  B0 B1 B2
1  .  F0 F1 F2 .  .  B0 B1 B2 .
2  .  .  F0 F1 F2 B0 B1 B2 .  .
"""

from __future__ import annotations

from dnnmem.estimator.schedules.grid import Grid, Step, looped
from dnnmem.estimator.schedules.limits import one_chunk


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks. Raises `UsageError` for more than one chunk a rank."""
    one_chunk("gpipe", chunks)
    steps = tuple(Step(phase, i, 0) for phase in "FB" for i in range(microbatches))
    return Grid(ranks=(steps,) * stages, stages=looped(stages))
