"""`dnnmem.recommend`: the best plans for a target on a cluster, from Python.

report = dnnmem.recommend("model.py", cluster="h100:8", batch=8)
model, optimizer = dnnmem.apply(model, optimizer, report.candidates[0].estimate.plan)
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from dnnmem.cli.api.shown import ShownProfile, ShownReport, shown
from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.recommend import Wanted, samples_of_each
from dnnmem.estimator.recommend import recommend as search
from dnnmem.estimator.techniques.precision import to_record
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Trace
from dnnmem.profilers.record_sizes import of_saved, record_sizes
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import with_batch


def recommend(
    target: str | Trace | ShownProfile | Sequence[Trace],
    *,
    cluster: str,
    batch: int | None = None,
    seq: int | None = None,
    args: Mapping[str, str] | None = None,
    optimizer: str = "adamw",
    global_batch: int | None = None,
    objective: str = "throughput",
    headroom: float = 0.05,
    top: int = 10,
    max_techniques: int | None = None,
    only: Collection[str] = (),
    without: Collection[str] = (),
    allow: Collection[str] = (),
) -> ShownReport:
    """The best plans for `target` on `cluster` (`h100:8`, `dgx-h100:4`, `my.toml`), ranked.

    Args: `target` as on the command line, a profile with its trace, or traces of one step; the others are the options
    of `dnnmem recommend`. `report.candidates[0].estimate.plan` goes into `dnnmem.apply`. Raises a `DnnmemError`.
    """
    if isinstance(target, ShownProfile):
        if target.trace is None:
            raise UsageError("this profile has no trace, and plans need the step", hint="profile the target again")
        target = target.trace
    where = find_cluster(cluster)
    if isinstance(target, str):
        each = batch if global_batch is None else samples_of_each(global_batch, where)
        request = Request(
            target=target, args=dict(args or {}), batch_size=each, seq_len=seq,
            optimizer=optimizer, device="fake", gpu=None if where.device.vendor == "cpu" else where.device.name,
        )  # fmt: skip
        recorded = record_sizes(with_batch(request), to_record(allow, only, without), cache=cache_folder(os.environ))
    else:
        recorded = of_saved([target] if isinstance(target, Trace) else target)
    wanted = Wanted(
        cluster=where, objective=objective, global_batch=global_batch, headroom=headroom, top=top,
        max_techniques=max_techniques, only=frozenset(only), without=frozenset(without), allow=frozenset(allow),
    )  # fmt: skip
    own = min(batch or recorded.own_batch, recorded.own_batch)
    return shown(ShownReport, search(replace(recorded, own_batch=own), wanted, load(where.device)))
