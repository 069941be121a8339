"""One training step at several micro-batches, and in other types where it was so recorded: a search starts from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.trace import Trace

BLOCKS = "blocks"
"""Where a trace of few blocks says how many the model has: a key of `Trace.batch`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A step at several micro-batches."""

    traces: Mapping[int, Trace]
    """By micro-batch."""
    layers: int | None = None
    """Blocks of the model, where the traces have few of them."""
    own_batch: int
    """What a GPU takes in the user's own step."""
    in_types: Mapping[str, Mapping[int, Trace]] = field(default_factory=dict)
    """The same by `Precision.compute`, recorded in it; `traces` are rewritten where a type is not here."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Types that the model cannot compute in, and why."""
    notes: tuple[str, ...] = ()
    """What a person should know of the record."""

    def trace(self, micro_batch: int, compute: str | None) -> Trace:
        """The step that a plan starts from. Raises `UnsupportedError` for a type that the model refuses."""
        if compute is not None and compute in self.refused:
            raise UnsupportedError(f"the model does not compute in {compute}: {self.refused[compute]}")
        return self.in_types.get(compute or "", self.traces)[micro_batch]
