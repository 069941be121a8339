"""The best plans really applied and run, several at once: one that fails is marked, and the next takes its place.

rank 1 ran 61.2 GiB (+0.1 %)   rank 2 out of memory -> last   rank 3 ran ...        until K have run
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.report import Candidate, Report, Verified

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.recorded import Recorded
    from dnnmem.profilers.request import Request
    from dnnmem.profilers.verify import Job

Runner = Callable[[Sequence["Job"]], Iterator[tuple[int, Verified]]]
"""Runs plans; the index of each job and what came of it, as they are done."""
MOST_WORKERS = 4
"""Plans that run at once on this machine: each is a process with torch, of 1 to 2 GiB."""


def verified(
    report: Report,
    request: Request | None,
    count: int,
    say: Callable[[str], None],
    *,
    top: int,
    runner: Runner,
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
        now, left = left[: count - len(ran)], left[count - len(ran) :]
        done = _run(now, request, say, runner, (len(ran), len(failed), count))
        ran += [c for c in done if c.verified is not None and c.verified.outcome == "ran"]
        failed += [c for c in done if c.verified is None or c.verified.outcome != "ran"]
    return replace(report, candidates=_ranked_anew([*[*ran, *left][:top], *failed]))


def _run(
    candidates: Sequence[Candidate],
    request: Request,
    say: Callable[[str], None],
    runner: Runner,
    before: tuple[int, int, int],
) -> list[Candidate]:
    """`candidates` with what came of running them; `before` them so many ran and failed, of those that are to run."""
    ran, failed, count = before
    found = list(candidates)
    jobs = [(_request(request, c), c.estimate.plan) for c in candidates]
    ranks = ", ".join(str(c.rank) for c in candidates)
    say(f"running plans {ranks}: {ran} of {count} have run, {failed} failed")
    for index, came in runner(jobs):
        found[index] = replace(candidates[index], verified=came)
        ran, failed = (ran + 1, failed) if came.outcome == "ran" else (ran, failed + 1)
        say(f"running plans {ranks}: {ran} of {count} have run, {failed} failed")
    return found


def _request(request: Request, candidate: Candidate) -> Request:
    micro = candidate.estimate.plan.batch.micro_batch
    return replace(request, batch_size=micro or request.batch_size, device="auto")


def _ranked_anew(order: Sequence[Candidate]) -> tuple[Candidate, ...]:
    new = {candidate.rank: rank for rank, candidate in enumerate(order, 1)}
    return tuple(
        replace(
            candidate,
            rank=new[candidate.rank],
            tied_with=tuple(sorted(new[rank] for rank in candidate.tied_with if rank in new)),
        )
        for candidate in order
    )


def runner_of(
    cluster: Cluster, environ: Mapping[str, str], executor: str, shapes: Iterable[tuple[int, ...]] = ()
) -> Runner:
    """Real GPUs where this machine has them, one plan after the other; else virtual ones, several plans at once.

    `shapes` are those of the model's parameters: they tell ranks that do the same.
    """
    from dnnmem.profilers.monitor import gpu_names

    there = gpu_names().count(cluster.device.cuda_name) if cluster.device.cuda_name else 0
    virtual = partial(_virtually, cluster=cluster, environ=environ, executor=executor, shapes=tuple(shapes))
    return partial(_on_gpus, there=there, virtual=virtual)


def with_predictions(report: Report, recorded: Recorded) -> Report:
    """`report` with what was predicted for each rank that ran."""
    from dnnmem.estimator.rank_samples import predicted_bytes

    def told(candidate: Candidate) -> Candidate:
        ran = candidate.verified
        if ran is None or not ran.ranks:
            return candidate
        said = predicted_bytes(recorded, candidate.estimate.plan, report.cluster, [one.rank for one in ran.ranks])
        alone = candidate.estimate.peak_reserved_bytes if len(ran.ranks) == 1 else None
        ranks = tuple(replace(one, predicted_bytes=said.get(one.rank, alone)) for one in ran.ranks)
        return replace(candidate, verified=replace(ran, ranks=ranks))

    return replace(report, candidates=tuple(map(told, report.candidates)))


def _on_gpus(jobs: Sequence[Job], *, there: int, virtual: Runner) -> Iterator[tuple[int, Verified]]:
    """Plans that this machine's GPUs suffice for run there."""
    from dnnmem.profilers.verify_cuda import verify_cuda

    others = [index for index, (_, plan) in enumerate(jobs) if plan.mesh.world_size > there]
    for index, (request, plan) in enumerate(jobs):
        if index not in others:
            yield index, verify_cuda(request, plan)
    for place, came in virtual([jobs[index] for index in others]) if others else ():
        yield others[place], came


def _virtually(
    jobs: Sequence[Job],
    *,
    cluster: Cluster,
    environ: Mapping[str, str],
    executor: str,
    shapes: tuple[tuple[int, ...], ...],
) -> Iterator[tuple[int, Verified]]:
    from dnnmem.cli.cache import cache_folder
    from dnnmem.profilers.verify import verify_many

    return verify_many(
        jobs, cluster.device, workers=min(os.cpu_count() or 1, MOST_WORKERS), executor=executor,
        ranks_per_node=cluster.gpus_per_node, cache=cache_folder(environ), shapes=shapes,
    )  # fmt: skip
