"""PipeDream (Narayanan et al. 2019, arXiv 1806.03377): 1F1B without a flush, weights updated after every backward.

A micro-batch's backward takes the weights that its forward took: rank r stashes a version for each that it holds,
stages - r of them. No rank waits once the pipeline is full; gradients are those of older weights.

>>> from dnnmem.estimator.schedules.grid import draw
>>> order(3, 8).versions, order(3, 8).flushes
((3, 2, 1), False)
>>> print(draw(order(3, 3)))
0  F0 F1 F2 .  .  B0 .  B1 .  B2
1  .  F0 F1 .  B0 F2 B1 .  B2 .
2  .  .  F0 B0 F1 B1 F2 B2 .  .
"""

from __future__ import annotations

from dnnmem.estimator.schedules.grid import Grid, looped
from dnnmem.estimator.schedules.limits import one_chunk
from dnnmem.estimator.schedules.one_f_one_b import held, rows


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks, from an empty pipeline. Raises `UsageError` for more than one chunk a rank."""
    one_chunk("pipedream", chunks)
    ranks, versions = rows(stages, microbatches), held(stages, microbatches)
    return Grid(ranks=ranks, stages=looped(stages), versions=versions, flushes=False)
