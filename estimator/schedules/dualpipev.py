"""DualPipeV: DualPipe cut in half (Sea AI Lab, 2025): one replica, folded as in ZB-V, in DualPipe's order.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(2, 4, 2)))
0  F0  F1  F2  F0' I0' W0' F1' F3  B1' F2' B0  B2' .   F3' B1  B3' I2  W2  I3  W3
1  .   F0  F0' F1  F1' F2  B0' F2' B0  F3  B1' F3' B1  B2' B2  .   I3' I3  W3' W3
"""

from __future__ import annotations

from dnnmem.estimator.schedules.dualpipe import phases
from dnnmem.estimator.schedules.grid import Grid, vee
from dnnmem.estimator.schedules.limits import enough, two_chunks


def order(stages: int, microbatches: int, chunks: int = 2) -> Grid:
    """Steps of each of `stages` ranks.

    Raises `UsageError` for other than two chunks a rank, and fewer than two micro-batches a rank.
    """
    two_chunks("dualpipev", chunks)
    enough("dualpipev", microbatches, 2 * stages)
    both = (range(microbatches), range(microbatches))
    return Grid(ranks=tuple(phases(both, r, stages) for r in range(stages)), stages=vee(stages), paired=True)
