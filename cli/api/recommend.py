"""`dnnmem.recommend`: the best plans for a target on a cluster, from Python."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from dnnmem.cli.api.shown import ShownProfile, ShownReport, shown
from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.trace import Trace
from dnnmem.profilers.recommend import recommend as find


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
    report = find(
        target, cluster=cluster, batch=batch, seq=seq, args=args, optimizer=optimizer, global_batch=global_batch,
        objective=objective, headroom=headroom, top=top, max_techniques=max_techniques, only=only, without=without,
        allow=allow, cache=cache_folder(os.environ),
    )  # fmt: skip
    return shown(ShownReport, report)
