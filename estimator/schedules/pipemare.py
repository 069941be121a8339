"""PipeMare (Yang et al. 2021, arXiv 1910.05124): 1F1B without a flush and without stashed weights.

Backward passes take the weights of the moment. What that costs in accuracy is made up for by smaller steps for earlier
stages, and by a running average of each weight's changes, from which the weights of the forward pass are told.

>>> from dnnmem.estimator.schedules.grid import draw
>>> order(3, 3).versions, order(3, 3).averages
((), 1)
>>> print(draw(order(3, 3)))
0  F0 F1 F2 .  .  B0 .  B1 .  B2
1  .  F0 F1 .  B0 F2 B1 .  B2 .
2  .  .  F0 B0 F1 B1 F2 B2 .  .
"""

from __future__ import annotations

from dnnmem.estimator.schedules.grid import Grid, looped
from dnnmem.estimator.schedules.limits import one_chunk
from dnnmem.estimator.schedules.one_f_one_b import rows


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks, from an empty pipeline. Raises `UsageError` for more than one chunk a rank."""
    one_chunk("pipemare", chunks)
    return Grid(ranks=rows(stages, microbatches), stages=looped(stages), averages=1, flushes=False)
