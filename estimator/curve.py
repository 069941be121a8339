"""Measured seconds over size for one kind of op: what a calibration found, read between its points on a log-log line.

    gemm-64, gemm-512 ...    products by flops, one curve for each shortest side that was measured
    gelu, norm, stream ...   traffic by bytes: an operator's own curve, else that of its class

>>> curve = Curve(sizes=(1e3, 1e6), seconds=(1e-6, 1e-3))
>>> [float(f"{s:.3g}") for s in curve(np.array([10.0, 1e4, 2e6]))]
[1e-08, 1e-05, 0.002]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.errors import UsageError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points in ascending order of size, at least one; beyond the ends the rate is that of the end."""

    sizes: tuple[float, ...]
    """Flops of arithmetic, bytes of traffic."""
    seconds: tuple[float, ...]
    """Of one op, its dispatch left out."""

    def __post_init__(self) -> None:
        """Refuse points that are no curve."""
        ascending = all(a < b for a, b in zip(self.sizes, self.sizes[1:], strict=False))
        if not self.sizes or len(self.sizes) != len(self.seconds) or not ascending or min(self.sizes) <= 0:
            raise UsageError(f"a curve has sizes {self.sizes} and {len(self.seconds)} times; sizes ascend, a time each")
        if min(self.seconds) <= 0:
            raise UsageError(f"a curve has a time of {min(self.seconds)} s; a time is above 0")

    def __call__(self, sizes: Floats) -> Floats:
        """Seconds at these sizes."""
        x, y = np.log(self.sizes), np.log(self.seconds)
        at = np.log(np.maximum(sizes, 1e-300))
        inside = np.interp(at, x, y)
        beyond = np.minimum(at - x[0], 0.0) + np.maximum(at - x[-1], 0.0)
        return np.asarray(np.exp(inside + beyond))


def between(curves: Mapping[float, Curve], sizes: Floats, sides: Floats) -> Floats:
    """Seconds at `sizes` read between the curves of the neighbouring `sides`, on a log line too; their ends hold on."""
    known = sorted(curves)
    table = np.log(np.stack([curves[side](sizes) for side in known]))
    at = np.interp(np.log(np.maximum(sides, 1.0)), np.log(known), np.arange(len(known)))
    low = np.minimum(at.astype(np.intp), max(len(known) - 2, 0))
    high, part, each = np.minimum(low + 1, len(known) - 1), at - low, np.arange(len(sizes))
    return np.asarray(np.exp(table[low, each] * (1 - part) + table[high, each] * part))
