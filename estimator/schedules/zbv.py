"""ZB-V (Qi et al. 2024, arXiv 2405.15362): two chunks a rank, down the ranks and up again, and backward in two steps.

The last stage lies where the first does, so that backwards begin early. Where forward and both parts of the backward
take as long as each other, no rank waits between its first step and its last, and each holds what 1F1B's first does.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(2, 4, 2)))
0  F0  F1  F2  F0' I0' W0' F1' I1' W1' F3  I0  W0  F2' I2' W2' I1  W1  F3' I3' W3' I2  W2  I3  W3  .
1  .   F0  F0' F1  F1' I0' W0' F2  I0  W0  F2' I1' W1' F3  I1  W1  F3' I2' W2' I2  I3' I3  W2  W3' W3
"""

from __future__ import annotations

from dnnmem.estimator.schedules.counted import Counted
from dnnmem.estimator.schedules.grid import Grid, Row, vee
from dnnmem.estimator.schedules.limits import two_chunks


def order(stages: int, microbatches: int, chunks: int = 2) -> Grid:
    """Steps of each of `stages` ranks. Raises `UsageError` for other than two chunks a rank."""
    two_chunks("zbv", chunks)
    return Grid(ranks=tuple(_rank(rank, stages, microbatches) for rank in range(stages)), stages=vee(stages))


def _rank(r: int, p: int, m: int) -> Row:
    steps = Counted((range(m), range(m)))
    steps.take("F0", 2 * (p - r) - 1)
    steps.take("F1 F0", r)
    steps.take("F1 I1 W1", p - r)
    while steps.left("F", 0) or steps.left("F", 1):
        steps.take("F0 I0 W0 F1 I1 W1")
    steps.take("I0 I1", r)  # weights wait
    steps.take("I0 W0", p - r)
    steps.take("W1", steps.left("W", 1))
    steps.take("W0", steps.left("W", 0))
    return tuple(steps.row)
