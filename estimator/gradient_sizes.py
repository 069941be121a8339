"""Sizes that `Plan.gradients` gives messages and memories, for who predicts them and for who sends them.

    bucket of n elements over N ranks, for codes:  N parts of part_of(n) elements, the last ones filled up with zeros

>>> from dnnmem.estimator.plan import Gradients
>>> part_of(Gradients(compression="signsgd"), 1000, 8), part_of(Gradients(compression="qsgd"), 1000, 8)
(128, 512)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Gradients

GRADIENTS = ("<gradients>",)
"""The module of what hooks do to buckets of gradients."""
GROUP = 512
"""Elements that share a scale in QSGD, as in its paper's experiments."""
MOMENTUM = 0.9
"""Of DGC, which keeps it in the place of the optimizer."""


def bits_of(wanted: Gradients) -> int:
    """Bits of a code."""
    return {"qsgd": wanted.bits, "terngrad": 2}.get(wanted.compression, 1)


def part_of(wanted: Gradients, elements: int, ranks: int) -> int:
    """Elements that one rank averages: whole bytes of codes, and whole groups."""
    unit = GROUP if wanted.compression == "qsgd" else 8
    return -(-elements // (ranks * unit)) * unit


def narrow_columns(shape: Sequence[int], rank: int) -> int:
    """Columns of the two matrices that PowerSGD sends of a gradient; 0 = it is sent whole, being no larger.

    >>> narrow_columns((512, 512), 4), narrow_columns((64, 3, 7, 7), 64), narrow_columns((512,), 1)
    (4, 0, 0)
    """
    rows, others = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, 1)
    columns = min(rank, rows, others)
    return columns if (rows + others) * columns < rows * others else 0
