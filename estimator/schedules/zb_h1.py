"""ZB-H1 (Qi et al. 2024, arXiv 2401.10241): 1F1B whose backward is two steps, the second of which fills the bubble.

`I`, the gradients of inputs, is what the stage before waits for; `W`, those of weights, may come later: rank r lets r
of them wait, so that all ranks hold as many micro-batches as the first does in 1F1B.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(3, 4)))
0  F0 F1 F2 .  .  I0 W0 F3 I1 W1 I2 W2 I3 W3
1  .  F0 F1 .  I0 F2 I1 W0 F3 I2 W1 I3 W2 W3
2  .  .  F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3
"""

from __future__ import annotations

from dnnmem.estimator.schedules.grid import Grid, Row, Step, looped
from dnnmem.estimator.schedules.limits import one_chunk


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks. Raises `UsageError` for more than one chunk a rank."""
    one_chunk("zb_h1", chunks)
    ranks = tuple(_rank(rank, stages, microbatches) for rank in range(stages))
    return Grid(ranks=ranks, stages=looped(stages))


def _rank(rank: int, p: int, m: int) -> Row:
    w = min(p - rank - 1, m)
    steps = [Step("F", i, 0) for i in range(w)]
    for i in range(m):
        if w + i < m:
            steps.append(Step("F", w + i, 0))
        steps.append(Step("I", i, 0))
        if i >= rank:
            steps.append(Step("W", i - rank, 0))
    return (*steps, *(Step("W", i, 0) for i in range(max(m - rank, 0), m)))
