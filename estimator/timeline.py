"""Bytes by kind over one step: what is alive at any moment, and the moment that needs most.

A predicted step, a recorded one and a CUDA snapshot all become this type, so that any two can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.trace import Kind, Trace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """One device's memory after each allocator event. Arrays have one entry an event; entry 0 is the start of the step."""

    op: npt.NDArray[np.int32]
    """Index of the op that owns the event; -1 for the start."""
    kinds: dict[Kind, npt.NDArray[np.int64]]
    """Bytes alive by kind; temporaries inside ops count as TEMP."""
    allocated: npt.NDArray[np.int64]
    """Sum over the kinds."""
    peak: int
    """Index of the first largest entry of `allocated`."""


def timeline(trace: Trace) -> Timeline:
    """The memory curve of `trace`."""
    raise RuntimeError  # written with layers.py


def alive_at(trace: Trace, index: int) -> dict[int, int]:
    """Storages alive after event `index` of `timeline(trace)`, with their bytes; temporaries have negative ids."""
    raise RuntimeError
