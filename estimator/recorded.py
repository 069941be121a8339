"""One training step at several micro-batches: what a search starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dnnmem.estimator.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A step at several micro-batches."""

    traces: Mapping[int, Trace]
    """By micro-batch."""
    layers: int | None = None
    """Blocks of the model, where the traces have few of them."""
    own_batch: int
    """What a GPU takes in the user's own step."""
