"""Pipeline schedules: which micro-batch each stage works on, in what order.

A schedule is `order(stages, microbatches, chunks) -> Grid`, one file each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dnnmem.estimator.schedules import gpipe, interleaved, one_f_one_b
from dnnmem.estimator.schedules.grid import Grid

SCHEDULES: Mapping[str, Callable[[int, int, int], Grid]] = {
    "1f1b": one_f_one_b.order,
    "gpipe": gpipe.order,
    "interleaved": interleaved.order,
}
"""By the name that `pipeline.schedule` has in a plan."""
