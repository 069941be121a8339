"""Passes: each rewrites a trace by one field of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from dnnmem.estimator.passes import kernels, remat, tensor

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.trace import Trace

PASSES: Mapping[str, Callable[[Trace, Plan, Cluster | None], Trace]] = {
    "tensor": tensor.apply,
    "remat": remat.apply,
    "kernels": kernels.apply,
}
"""By field of a plan, in the order in which they are applied."""
