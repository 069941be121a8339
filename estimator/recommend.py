"""From a recorded step and a cluster to a ranked report: the space, the search in it, what each plan is worth.

scope --techniques--> choices --search--> priced plans --ranking--> candidates, against the user's own step
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from dnnmem.estimator.block_list import main_list
from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.collector import collector_paused
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.nothing_fits import nearest_words
from dnnmem.estimator.offers import precision_words
from dnnmem.estimator.own_remat import computes_again
from dnnmem.estimator.passes import PASSES
from dnnmem.estimator.passes.loss_site import logits_share
from dnnmem.estimator.passes.precision import recorded_in
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.ranking import TIE_WINDOW, pareto, ranked, tied
from dnnmem.estimator.reasons import why
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.report import Candidate, Report
from dnnmem.estimator.search import MEMORY_SLOWDOWN, OBJECTIVES, Priced, Search, Tally, key_of
from dnnmem.estimator.search_ahead import Ahead
from dnnmem.estimator.search_core import Cost
from dnnmem.estimator.search_cost import Costs
from dnnmem.estimator.sparse_gradients import HINT, WHY, has_sparse_gradients
from dnnmem.estimator.techniques import Choice, Scope, choices, context, experts, tensor
from dnnmem.estimator.time_model import TimeModel, load
from dnnmem.estimator.unreached import any_unreached


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of a search."""

    cluster: Cluster
    """The machine."""
    objective: str = "throughput"
    """One of `OBJECTIVES`."""
    global_batch: int | None = None
    """Samples of a step; None = the recorded batch on every GPU."""
    headroom: float = 0.05
    """Share of the GPU's memory that is to stay free."""
    top: int = 10
    """Candidates that are told."""
    max_techniques: int | None = None
    """Most techniques of a plan."""
    only: frozenset[str] = frozenset()
    """Techniques that alone are used."""
    without: frozenset[str] = frozenset()
    """Techniques that are not."""
    allow: frozenset[str] = frozenset()
    """Files of techniques that change training, and may."""


@collector_paused()
def recommend(
    recorded: Recorded,
    wanted: Wanted,
    model: TimeModel,
    *,
    on_price: Callable[[Tally], None] = lambda _: None,
    ahead: Ahead | None = None,
) -> Report:
    """The best plans for a recorded step; `on_price` hears of each that is looked at closer; `ahead` prices beside it.

    Raises `UsageError` for an objective or a technique that is none, and a batch that no plan can have.
    """
    if wanted.objective not in OBJECTIVES:
        raise UsageError(f"the objective is {wanted.objective!r}; it is one of {', '.join(OBJECTIVES)}")
    started = time.perf_counter()
    scope = scope_of(recorded, wanted)
    space = choices(scope)
    if not space:
        raise _empty(scope)
    costs = Costs(recorded=recorded, cluster=wanted.cluster, model=model)
    tally = Tally()
    plain = _plain(costs, space, wanted)
    if ahead is not None and plain:  # who has nothing else to do yet
        ahead.begin(("exact", plain[0].plan, math.inf), plain[0])
    found = find(costs, space, wanted, tally, on_price=lambda: on_price(tally), ahead=ahead)
    fits = bool(found)
    if not fits:
        found = smallest(costs, space, tally, lambda: on_price(tally))[: wanted.top]
    base = _baseline(costs, plain, wanted, ahead)
    told = _candidates(found[: wanted.top], base, wanted, model)
    nothing = "" if fits else nearest_words(recorded, wanted, found, _again)
    return Report(
        target=next(iter(recorded.traces.values())).origin.target,
        cluster=wanted.cluster,
        objective=wanted.objective,
        headroom=wanted.headroom,
        global_batch=scope.global_batch,
        considered=len(space),
        priced=tally.priced,
        search_seconds=time.perf_counter() - started,
        baseline=_as_candidate(0, base, None, wanted) if base else None,
        candidates=told,
        nothing_fits=nothing,
        notes=recorded.notes + _notes(tally, wanted, precision_words(costs, found[0], wanted) if fits else ""),
    )


def _empty(scope: Scope) -> UsageError:
    """Why no plan is left."""
    if scope.sparse:
        return UsageError(f"no plan uses {scope.cluster.gpus} GPUs: {WHY}", hint=HINT)
    return UsageError(
        f"no plan shares {scope.global_batch} samples among {' or '.join(map(str, scope.gpus))} GPUs in "
        f"micro-batches of {', '.join(map(str, sorted(scope.micro_batches)))}",
        hint="give another --global-batch, or allow more techniques",
    )


def samples_of_each(global_batch: int, cluster: Cluster) -> int:
    """Of a global batch, what a GPU takes that shares no sample; 1 where there are fewer, which GPUs then share.

    Raises `UsageError` where it is not shared evenly.
    """
    whole = min(global_batch, cluster.gpus)
    if global_batch % whole or cluster.gpus % whole:
        raise UsageError(
            f"a global batch of {global_batch} is not shared evenly by {cluster.gpus} GPUs",
            hint=f"give a multiple, as {max(1, round(global_batch / cluster.gpus)) * cluster.gpus}, or a divisor",
        )
    return global_batch // whole


def budget_of(cluster: Cluster, headroom: float) -> float:
    """Bytes that the allocator may reserve."""
    return cluster.device.usable_bytes * (1 - headroom) - (cluster.device.context_bytes or 0)


def scope_of(recorded: Recorded, wanted: Wanted) -> Scope:
    """The space that is asked for."""
    cluster = wanted.cluster
    gpus = (cluster.gpus,)
    if wanted.objective == "cost":
        gpus = tuple(n for n in (2**k for k in range(20)) if n < cluster.gpus) + gpus
    first = next(iter(recorded.traces.values()))
    blocks = main_list(first)
    return Scope(
        cluster=cluster,
        gpus=gpus,
        global_batch=wanted.global_batch or recorded.own_batch * cluster.gpus,
        micro_batches=tuple(sorted(recorded.traces)),
        blocks=recorded.layers or (blocks.count if blocks else 0),
        fields=frozenset(PASSES),
        allow=wanted.allow,
        only=wanted.only,
        without=wanted.without,
        max_techniques=wanted.max_techniques,
        tensor=tensor.degrees(first, cluster),
        context=context.degrees(first, cluster),
        experts=experts.degrees(first, cluster),
        computes=recorded_in(first),
        unreached=any_unreached(first.origin.notes),
        sparse=has_sparse_gradients(first),
        computes_again=computes_again(first),
        logits_share=logits_share(first),
    )


def find(
    costs: Costs,
    space: Sequence[Choice],
    wanted: Wanted,
    tally: Tally,
    *,
    on_price: Callable[[], None] = lambda: None,
    ahead: Ahead | None = None,
) -> list[Priced]:
    """The best `wanted.top` plans that fit, in order, and what is tied with the first; empty if none fits."""
    budget = budget_of(wanted.cluster, wanted.headroom)
    limit = float("inf")
    if wanted.objective == "memory":
        fastest = Search(
            costs, space, objective="throughput", budget_bytes=budget, tally=tally, on_price=on_price, ahead=ahead
        )
        first = next(fastest.best(), None)
        if first is None:
            return []
        limit = first.estimate.step_seconds * MEMORY_SLOWDOWN
    search = Search(
        costs, space, objective=wanted.objective, budget_bytes=budget, limit_seconds=limit, tally=tally,
        on_price=on_price, ahead=ahead,
    )  # fmt: skip
    found: list[Priced] = []
    for priced in search.best():
        found.append(priced)
        if len(found) >= wanted.top:
            break
    if not found:
        return []
    timed = wanted.objective != "memory"
    spread = costs.model.spread if timed else None
    if timed:
        fewest = min(p.choice.count for p in found if tied(found[0].estimate, p.estimate, costs.model.spread))
        found += search.within(_key(wanted.objective, found[0]) * (1 + TIE_WINDOW), fewest + 1)
    return ranked(found, lambda priced: _key(wanted.objective, priced), spread)


def smallest(
    costs: Costs, space: Sequence[Choice], tally: Tally, on_price: Callable[[], None] = lambda: None, count: int = 3
) -> list[Priced]:
    """The plans that need least memory, whether they fit or not."""
    search = Search(costs, space, objective="memory", budget_bytes=float("inf"), tally=tally, on_price=on_price)
    found: list[Priced] = []
    for priced in search.best():
        found.append(priced)
        if len(found) >= count:
            break
    return found


def _key(objective: str, priced: Priced) -> float:
    estimate = priced.estimate
    return key_of(
        objective, priced.choice, Cost(seconds=estimate.step_seconds, peak_bytes=estimate.peak_reserved_bytes or 0)
    )


def _again(recorded: Recorded, wanted: Wanted) -> Priced | None:
    """A plan of another question that fits, the fastest of those with the fewest techniques; None if none does."""
    space = choices(scope_of(recorded, wanted))
    costs = Costs(recorded=recorded, cluster=wanted.cluster, model=load(wanted.cluster.device))
    budget = budget_of(wanted.cluster, wanted.headroom)
    if not any(Search(costs, space, objective="memory", budget_bytes=budget).best()):
        return None
    fastest = replace(wanted, top=1, objective="throughput")
    for most in range(max(choice.count for choice in space) + 1):
        found = find(costs, [choice for choice in space if choice.count <= most], fastest, Tally())
        if found:
            return found[0]
    return None


def _plain(costs: Costs, space: Sequence[Choice], wanted: Wanted) -> list[Choice]:
    """The user's step as it is: on one GPU, or under DDP if that may fit, or FSDP2; at the user's batch, or near it."""
    budget = budget_of(wanted.cluster, wanted.headroom)
    plain, own, gpus = {"", "accumulation"}, costs.recorded.own_batch, wanted.cluster.gpus
    found: list[Choice] = []
    for strategy in ("none",) if gpus == 1 else ("ddp", "zero3"):
        mine = [
            c for c in space
            if c.plan.sharding.strategy == strategy and c.plan.mesh.world_size == gpus
            and {t.name for t in c.techniques} <= plain | {strategy}
        ]  # fmt: skip
        if mine:
            found.append(
                min(mine, key=lambda c: (abs((c.plan.batch.micro_batch or own) - own), c.plan.batch.accumulation))
            )
    with suppress(UnsupportedError, UsageError):
        while len(found) > 1 and costs.bound(found[0].plan).peak_bytes > budget:
            found.pop(0)
    return found


def _baseline(costs: Costs, plain: Sequence[Choice], wanted: Wanted, ahead: Ahead | None) -> Priced | None:
    """The first of them that fits, or the last."""
    last: Priced | None = None
    for choice in plain:
        with suppress(UnsupportedError, UsageError):
            found = ahead.answer(("exact", choice.plan, math.inf)) if ahead else None
            last = found if isinstance(found, Priced) else Priced(choice=choice, estimate=costs.exact(choice.plan))
            if (last.estimate.peak_reserved_bytes or 0) <= budget_of(wanted.cluster, wanted.headroom):
                break
    return last


def _candidates(
    found: Sequence[Priced], base: Priced | None, wanted: Wanted, model: TimeModel
) -> tuple[Candidate, ...]:
    frontier = pareto([priced.estimate for priced in found])
    told = []
    for rank, (priced, on_it) in enumerate(zip(found, frontier, strict=True), 1):
        near = tuple(
            other for other, that in enumerate(found, 1)
            if that is not priced and tied(priced.estimate, that.estimate, model.spread)
        )  # fmt: skip
        candidate = _as_candidate(rank, priced, base, wanted)
        told.append(replace(candidate, tied_with=near, pareto=on_it))
    return tuple(told)


def _as_candidate(rank: int, priced: Priced, base: Priced | None, wanted: Wanted) -> Candidate:
    budget = budget_of(wanted.cluster, wanted.headroom)
    estimate = priced.estimate
    fits = None if estimate.peak_reserved_bytes is None else estimate.peak_reserved_bytes <= budget
    return Candidate(
        rank=rank,
        estimate=replace(estimate, fits=fits),
        techniques=tuple(technique.words for technique in priced.choice.techniques if technique.words),
        changes=changes(base.choice.plan if base else Plan(), priced.choice.plan),
        why=why(priced, base, budget),
        alters_training=priced.choice.alters,
    )


def changes(before: Plan, after: Plan) -> tuple[str, ...]:
    """What is different, as `--set` would say it."""
    old, new = asdict(before), asdict(after)
    return tuple(
        f"{part}.{name}={value}"
        for part, table in new.items()
        for name, value in table.items()
        if value != old[part][name]
    )


def _notes(tally: Tally, wanted: Wanted, offer: str) -> tuple[str, ...]:
    notes = [offer] if offer else []
    notes += [f"{count} plans were left out: {why}" for why, count in tally.unsupported.items()]
    if wanted.cluster.device.context_bytes is None:
        notes.append(f"What a process takes of {wanted.cluster.device.name} beside the allocator is not known.")
    return tuple(notes)
