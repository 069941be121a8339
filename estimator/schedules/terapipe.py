"""TeraPipe (Li et al. 2021, arXiv 2102.07988): the pieces that follow each other are slices of a sequence.

A slice's tokens attend to those of the slices before it, so forwards go from the first slice to the last and backwards
from the last to the first; nothing may be let go of before. Slices are the micro-batches here.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(3, 3)))
0  F0 F1 F2 .  .  .  .  B2 B1 B0
1  .  F0 F1 F2 .  .  B2 B1 B0 .
2  .  .  F0 F1 F2 B2 B1 B0 .  .
"""

from __future__ import annotations

from dnnmem.estimator.schedules.grid import Grid, Step, looped
from dnnmem.estimator.schedules.limits import one_chunk


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks. Raises `UsageError` for more than one chunk a rank."""
    one_chunk("terapipe", chunks)
    forward = tuple(Step("F", i, 0) for i in range(microbatches))
    backward = tuple(Step("B", i, 0) for i in reversed(range(microbatches)))
    return Grid(ranks=(forward + backward,) * stages, stages=looped(stages))
