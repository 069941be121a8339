"""Interleaved 1F1B in Megatron-LM's order (Narayanan et al. 2021, arXiv 2104.04473): several chunks a rank.

A rank runs a chunk on `stages` micro-batches, then the next chunk on the same ones; the bubble shrinks by the number of
chunks, and more activations are held.

>>> from dnnmem.estimator.schedules.grid import draw
>>> print(draw(order(2, 4, 2)))
0  F0  F1  F0' F1' F2  B0' F3  B1' F2' B0  F3' B1  .   B2' .   B3' B2  B3
1  .   F0  F1  F0' B0' F1' B1' F2  B0  F3  B1  F2' B2' F3' B3' B2  B3  .
"""

from __future__ import annotations

from dnnmem.estimator.schedules.grid import Grid, Row, Step, looped
from dnnmem.estimator.schedules.limits import multiple


def order(stages: int, microbatches: int, chunks: int) -> Grid:
    """Steps of each of `stages` ranks with `chunks` chunks.

    Raises `UsageError` unless micro-batches are a multiple of the stages, as Megatron-LM asks.
    """
    multiple("interleaved", microbatches, stages)
    ranks = tuple(_rank(rank, stages, microbatches, chunks) for rank in range(stages))
    return Grid(ranks=ranks, stages=looped(stages, chunks))


def _rank(rank: int, p: int, m: int, v: int) -> Row:
    # p ranks, m micro-batches, v chunks a rank, w forwards before the first backward
    w = m * v if m == p else min(m * v, 2 * (p - rank - 1) + (v - 1) * p)
    forward = [_step("F", k, p, v) for k in range(m * v)]
    backward = [_step("B", k, p, v) for k in range(m * v)]
    steps = forward[:w]
    for k, back in enumerate(backward):
        steps += forward[w + k : w + k + 1]
        steps.append(back)
    return tuple(steps)


def _step(phase: str, k: int, p: int, v: int) -> Step:
    """The k-th forward or backward of a rank: `p` micro-batches on one chunk, then as many on the next."""
    turn, place = divmod(k, p * v)
    chunk = place // p
    return Step(phase, turn * p + place % p, chunk if phase == "F" else v - 1 - chunk)
