"""The best plans really applied and run, one after the other: one that fails is marked, and the next takes its place.

rank 1 ran 61.2 GiB (+0.1 %)   rank 2 out of memory -> last   rank 3 ran ...        until K have run
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import DnnmemError, UnsupportedError
from dnnmem.estimator.report import Candidate, Report, Verified

if TYPE_CHECKING:
    from dnnmem.profilers.request import Request


def verified(
    report: Report,
    request: Request | None,
    count: int,
    environ: Mapping[str, str],
    say: Callable[[str], None],
    *,
    top: int,
) -> Report:
    """`report` with its best plans run until `count` have, and `top` of them told; those that fail come last.

    Raises `UnsupportedError` for a saved trace, which has no model.
    """
    if request is None:
        raise UnsupportedError(
            "a saved trace has no model to apply a plan to; --verify needs one", hint="name the model itself"
        )
    ran: list[Candidate] = []
    failed: list[Candidate] = []
    left = list(report.candidates)
    while left and len(ran) < count:
        candidate = left.pop(0)
        say(f"running plan {candidate.rank} on a virtual GPU ({len(ran)} of {count} have run)")
        found = replace(candidate, verified=_run(request, candidate, report, environ))
        good = found.verified is not None and found.verified.outcome == "ran"
        (ran if good else failed).append(found)
    order = [*[*ran, *left][:top], *failed]
    new = {candidate.rank: rank for rank, candidate in enumerate(order, 1)}
    told = tuple(
        replace(
            candidate,
            rank=new[candidate.rank],
            tied_with=tuple(sorted(new[rank] for rank in candidate.tied_with if rank in new)),
        )
        for candidate in order
    )
    return replace(report, candidates=told)


def _run(request: Request, candidate: Candidate, report: Report, environ: Mapping[str, str]) -> Verified:
    from dnnmem.cli.cache import cache_folder
    from dnnmem.profilers.verify import verify

    plan = candidate.estimate.plan
    request = replace(request, batch_size=plan.batch.micro_batch or request.batch_size, device="auto")
    try:
        return verify(
            request, plan, report.cluster.device, ranks_per_node=report.cluster.gpus_per_node,
            cache=cache_folder(environ),
        )  # fmt: skip
    except UnsupportedError:
        raise
    except DnnmemError as error:
        return Verified(device="virtual", outcome="failed", message=error.message)
