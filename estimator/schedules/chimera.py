"""Chimera (Li and Hoefler 2021, arXiv 2107.06925): two replicas in opposite directions, 1F1B in each, merged.

Half of the micro-batches come in from either end, in units of one a stage; the ranks that one direction leaves waiting
work for the other. What is ready is taken so: backwards first, then forwards of earlier units, nearest their end.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(4, 4)))
0  F0  F1  .   F2' B2' F3' B3' B0  .   B1
1  .   F0  F2' F1  F3' B2' B0  B3' B1  .
2  .   F2' F0  F3' F1  B0  B2' B1  B3' .
3  F2' F3' .   F0  B0  F1  B1  B2' .   B3'
"""

from __future__ import annotations

from dnnmem.estimator.schedules.grid import Grid, Step, two_ways
from dnnmem.estimator.schedules.limits import even, multiple, one_chunk


def order(stages: int, microbatches: int, chunks: int = 1) -> Grid:
    """Steps of each of `stages` ranks.

    Raises `UsageError` for more than one chunk a rank, an odd number of ranks, and part of a unit.
    """
    p, m = stages, microbatches
    one_chunk("chimera", chunks)
    even("chimera", p)
    multiple("chimera", m, p)
    ways = [[i for i in range(m) if i % p // (p // 2) == way] for way in (0, 1)]
    ended: dict[tuple[str, int, int], int] = {}
    rows: list[list[Step]] = [[] for _ in range(p)]
    tick = 0
    while sum(map(len, rows)) < 2 * m * p:
        chosen = [_next(r, p, rows[r], ways, ended) for r in range(p)]
        for r, step in enumerate(chosen):
            if step is not None:
                rows[r].append(step)
                ended[step.phase, step.microbatch, _stage(r, step.chunk, p)] = tick
        tick += 1
    return Grid(ranks=tuple(map(tuple, rows)), stages=two_ways(p))


def _stage(rank: int, way: int, p: int) -> int:
    return p - 1 - rank if way else rank


def _next(
    r: int, p: int, row: list[Step], ways: list[list[int]], ended: dict[tuple[str, int, int], int]
) -> Step | None:
    """The step that a rank takes of those that are ready; None = it waits."""
    ready: list[tuple[tuple[int, int, int], Step]] = []
    for way in (0, 1):
        s = _stage(r, way, p)
        back = sum(step.phase == "B" and step.chunk == way for step in row)
        fore = sum(step.phase == "F" and step.chunk == way for step in row)
        if back < fore:
            i = ways[way][back]
            if s == p - 1 or ("B", i, s + 1) in ended:
                ready.append(((0, i, 0), Step("B", i, way)))
        if fore < len(ways[way]) and fore - back < min(p - s, p // 2):
            i = ways[way][fore]
            if not s or ("F", i, s - 1) in ended:
                ready.append(((1, i // p, -s), Step("F", i, way)))
    return min(ready)[1] if ready else None
