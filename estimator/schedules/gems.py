"""GEMS (Jain et al. 2020, SC20): two replicas of the model in opposite directions, and one micro-batch a rank.

While the backward pass of one goes up the ranks, the forward pass of the next, in the other replica, follows it; each
rank holds one micro-batch. Memory is least, and so is the use of the ranks: they wait (K - 1) / (K + 1/2) of the time.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(3, 2)))
0  F0  .   .   .   .   B0  F1' B1' .   .
1  .   F0  .   .   B0  F1' .   .   B1' .
2  .   .   F0  B0  F1' .   .   .   .   B1'
"""

from __future__ import annotations

from dnnmem.estimator.schedules.grid import Grid, Step, two_ways
from dnnmem.estimator.schedules.limits import one_chunk


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks. Raises `UsageError` for more than one chunk a rank."""
    one_chunk("gems", chunks)
    steps = tuple(Step(phase, i, i % 2) for i in range(microbatches) for phase in "FB")
    return Grid(ranks=(steps,) * stages, stages=two_ways(stages))
