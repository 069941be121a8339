"""HetPipe (Park et al. 2020, arXiv 2005.14038): pipelines of unlike GPUs, each a worker of its own, that never flush.

A wave is as many micro-batches as a worker has in flight; it is sent to the others as one update, and each micro-batch
keeps the weights that it began with. Here is one worker: a step is a wave.

>>> from dnnmem.estimator.schedules.grid import draw
>>> order(3, 2).versions
(2, 2, 1)
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
    one_chunk("hetpipe", chunks)
    ranks, versions = rows(stages, microbatches), held(stages, microbatches)
    return Grid(ranks=ranks, stages=looped(stages), versions=versions, flushes=False)
