"""Pipeline schedules: which micro-batch each stage works on, in what order.

A schedule is `order(stages, microbatches, chunks) -> Grid`, one file each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dnnmem.estimator.schedules import (
    chimera,
    dualpipe,
    dualpipev,
    gems,
    gpipe,
    hetpipe,
    interleaved,
    one_f_one_b,
    pipedream,
    pipemare,
    terapipe,
    two_buffered,
    varuna,
    zb_h1,
    zbv,
)
from dnnmem.estimator.schedules.grid import Grid

SCHEDULES: Mapping[str, Callable[[int, int, int], Grid]] = {
    "1f1b": one_f_one_b.order,
    "dapple": one_f_one_b.order,
    "gpipe": gpipe.order,
    "interleaved": interleaved.order,
    "zb_h1": zb_h1.order,
    "zbv": zbv.order,
    "dualpipe": dualpipe.order,
    "dualpipev": dualpipev.order,
    "chimera": chimera.order,
    "gems": gems.order,
    "varuna": varuna.order,
    "terapipe": terapipe.order,
    "pipedream": pipedream.order,
    "2bw": two_buffered.order,
    "pipemare": pipemare.order,
    "hetpipe": hetpipe.order,
}
"""By the name that `pipeline.schedule` has in a plan."""
ALTERS: Mapping[str, str] = {
    "pipedream": "each micro-batch updates the weights, and gradients are those of older ones",
    "2bw": "gradients are those of the weights before the last update",
    "pipemare": "forward and backward passes of a micro-batch take different weights",
    "hetpipe": "pipelines update shared weights without waiting for each other",
}
"""How those that never flush change the mathematics of training."""
UPDATES_EACH = frozenset({"pipedream"})
"""Those whose every micro-batch is followed by an update of the weights."""
