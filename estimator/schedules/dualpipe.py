"""DualPipe (DeepSeek-V3, arXiv 2412.19437): two replicas in opposite directions, each forward beside a backward.

Micro-batches come in from both ends. In the middle a rank runs the forward of one direction and the backward of the
other at once, so that what either sends is hidden; parts of backwards fill the ends. A rank holds K + 1 micro-batches.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(2, 4)))
0  F0  F2' F1  B2' F3' B0  B3' I1  W1
1  F2' F0  F3' B0  F1  B2' B1  I3' W3'
"""

from __future__ import annotations

from dnnmem.estimator.schedules.counted import Counted
from dnnmem.estimator.schedules.grid import Grid, Row, two_ways
from dnnmem.estimator.schedules.limits import enough, even, multiple, one_chunk


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks; half of the micro-batches go each way.

    Raises `UsageError` for more than one chunk a rank, odd numbers, and fewer than two micro-batches a stage.
    """
    p, m = stages, microbatches
    one_chunk("dualpipe", chunks)
    even("dualpipe", p)
    multiple("dualpipe", m, 2)
    enough("dualpipe", m, 2 * p)
    ways = (range(m // 2), range(m // 2, m))
    ranks = tuple(phases(ways, min(r, p - 1 - r), p // 2, swapped=r >= p // 2) for r in range(p))
    return Grid(ranks=ranks, stages=two_ways(p), paired=True)


def phases(lists: tuple[range, range], k: int, h: int, *, swapped: bool = False) -> Row:
    """Steps of the rank that is `k`-th of the `h` from an end, with the micro-batches of each chunk.

    `swapped` ranks are nearer the end where chunk 1 begins.
    """
    a, b = "10" if swapped else "01"
    steps = Counted(lists)
    steps.take(f"F{a}", 2 * (h - k - 1))
    steps.take(f"F{a} F{b}", k + 1)
    steps.take(f"I{b} W F{b}", h - k - 1)
    steps.take(f"F{a} B{b} F{b} B{a}", len(lists[0]) - 2 * h + k + 1)
    steps.take(f"B{b} F{b} B{a}", h - k - 1)
    for n, way in enumerate((b, a) * (k + 1)):  # the later half lets weights wait
        steps.take(f"{'I' if n > k else 'B'}{way}")
    steps.take(f"W I{a}", h - k - 1)
    steps.take("W", k + 1)
    return tuple(steps.row)
