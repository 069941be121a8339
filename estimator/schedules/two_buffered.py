"""PipeDream-2BW (Narayanan et al. 2021, arXiv 2006.09503): 1F1B without a flush, two versions of the weights.

Gradients of a step's micro-batches are summed, and those that were in flight during the update end on the weights
before it: two versions are enough where a step has as many micro-batches as there are stages. Weights lag by a step.

>>> from dnnmem.estimator.schedules.grid import draw
>>> order(3, 4).versions
(2, 2, 2)
>>> print(draw(order(3, 4)))
0  F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
1  .  F0 F1 .  B0 F2 B1 F3 B2 .  B3 .
2  .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .
"""

from __future__ import annotations

from dnnmem.estimator.schedules.grid import Grid, looped
from dnnmem.estimator.schedules.limits import enough, one_chunk
from dnnmem.estimator.schedules.one_f_one_b import rows


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks, from an empty pipeline.

    Raises `UsageError` for more than one chunk a rank, and for fewer micro-batches than stages.
    """
    one_chunk("2bw", chunks)
    enough("2bw", microbatches, stages)
    return Grid(ranks=rows(stages, microbatches), stages=looped(stages), versions=(2,) * stages, flushes=False)
