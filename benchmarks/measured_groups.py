"""Would the plan that was fastest have come first? Published steps that differ in nothing but their plan, put in order.

    python benchmarks/measured_groups.py [CSV ...] [--save]

A group is what one source measured of one model, sequence length and number of GPUs by several plans: recomputation,
resharding, micro-batch, sharding. Each plan is priced as `dnnmem recommend` prices it, with the rates of a site that
nobody has calibrated, and the group is put in the report's order; ties are the report's own. Where the search has all
that a group differs in, it is also run over that part of its space. Regret is how much slower the first was than the
fastest, by tokens per second and GPU, as measured. `--save` writes the tables into docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accuracy_page import put

from dnnmem.cli.commands.validate import published
from dnnmem.cli.validation_run import cases, estimated, traces
from dnnmem.estimator.allocator_settings import parse_settings
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.estimate import Estimate, price
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.passes import PASSES
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.ranking import ranked, tied
from dnnmem.estimator.recommend import Wanted, budget_of, find
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.search import Priced, Tally
from dnnmem.estimator.search_cost import Costs
from dnnmem.estimator.techniques import Choice, Scope, Technique, choices
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.validation.case import Case, Key

SOURCES = (
    "torchtitan_llama_moe_curated", "llmfoundry_mpt_throughput", "internevo_a100_a800",
    "megatron_selective_recompute_2022", "vtrain_multi",
)  # fmt: skip
"""Tables that measured several plans of one thing. vTrain's single node is left out: a predictor's own numbers."""
_SHOWN = 8
"""Rows of a group in the docs, in the report's order."""
_REMAT = {"none": "", "selective": "remat-selective", "full": "remat-full"}
_MODELS = {(32, 4096): "8B", (40, 5120): "13B", (80, 8192): "70B", (64, 5120): "32B", (12, 768): "125M"}
"""Layers and width, and what people call that; else the source's own name stands for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measured plan."""

    case: Case
    """The published row."""
    rate: float
    """Tokens per second and GPU as measured; 0 = it ran out of memory."""
    estimate: Estimate
    """By the default site."""
    known: Estimate
    """By the source's own site, whose host and loop were fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a group."""

    rows: tuple[Row, ...]
    """In the report's order."""
    best: Row
    """The fastest that was measured."""
    ties: bool
    """The fastest is the first, or the report cannot tell them apart."""
    regret: float
    """Rate of the fastest over that of the first, less 1."""
    known_regret: float
    """The same by the source's own site."""
    found: str
    """What the search put first, and whether that was measured."""
    search_regret: float | None
    """The same of what the search put first; None if it has not all of it, or that was not measured."""


def groups(found: Iterable[Case]) -> list[list[Case]]:
    """Cases of one source, model, sequence and number of GPUs, wherever their plans differ."""
    told: dict[object, list[Case]] = {}
    for case in found:
        if case.reason or (case.measured_seconds is None and not case.out_of_memory):
            continue
        source = (case.source, case.row.get("source", ""), case.row.get("section", ""))
        if case.source == SOURCES[2]:
            source = (case.source, "", "")  # one page, one model
        key = (source, case.target_args, case.layers, case.seq, case.gpu, case.plan.mesh.world_size)
        told.setdefault(key, []).append(case)
    return [own for own in told.values() if len({repr(case.plan) for case in own if not case.out_of_memory}) > 1]


def verdict(own: Sequence[Case], steps: Mapping[Key, Trace]) -> Verdict:
    """What the report would have said of a group, and the search."""
    rows = [_row(case, steps[case.key]) for case in own]
    spread = load(rows[0].estimate.cluster.device).spread
    fit = [row for row in rows if row.estimate.fits is not False]
    order = _order(fit, spread)
    best = max(rows, key=lambda row: row.rate)
    known = min(fit, key=lambda row: row.known.step_seconds / row.known.samples)
    found, search_regret = searched(rows, steps)
    return Verdict(
        rows=(*order, *(row for row in rows if row not in fit)),
        best=best,
        ties=order[0] is best or tied(order[0].estimate, best.estimate, spread),
        regret=_regret(best, order[0]),
        known_regret=_regret(best, known),
        found=found,
        search_regret=search_regret,
    )


def _row(case: Case, trace: Trace) -> Row:
    cluster = find_cluster(case.cluster)
    step = local_step(trace, case.plan, cluster, case.layers)
    settings = parse_settings(case.allocator) if case.allocator else None
    default = price(step, load(cluster.device), settings=settings)
    ranks = case.plan.mesh.data_ranks
    tokens = (case.plan.batch.micro_batch or 1) * case.plan.batch.accumulation * ranks * (case.seq or 1)
    rate = 0.0 if case.measured_seconds is None else tokens / case.measured_seconds / case.plan.mesh.world_size
    return Row(case=case, rate=rate, estimate=default, known=estimated(case, trace, memory=False))


def _order(rows: Sequence[Row], spread: Mapping[str, float]) -> list[Row]:
    """As the report puts them: ties go to fewer techniques."""
    priced = {id(row.estimate): row for row in rows}
    told = [Priced(choice=_as_choice(row.case.plan), estimate=row.estimate) for row in rows]
    return [priced[id(p.estimate)] for p in ranked(told, lambda p: _each(p.estimate), spread)]


def _each(estimate: Estimate) -> float:
    """Seconds of a GPU for a sample: the report's key."""
    return estimate.step_seconds * estimate.plan.mesh.world_size / estimate.samples


def _as_choice(plan: Plan) -> Choice:
    names = [
        _REMAT.get(plan.remat.policy, plan.remat.policy),
        "accumulation" * (plan.batch.accumulation > 1),
        "fusion" * (plan.kernels.fusion != "none"),
        "tp" * (plan.mesh.tp > 1),
    ]
    return Choice(plan=plan, techniques=tuple(Technique(name=name) for name in names if name))


def _regret(best: Row, first: Row) -> float:
    return best.rate / first.rate - 1 if first.rate else float("inf")


def searched(rows: Sequence[Row], steps: Mapping[Key, Trace]) -> tuple[str, float | None]:
    """What the search puts first in the group's part of its space, and its regret."""
    varied = {_apart(row.case.plan) for row in rows}
    if len(varied) > 1:
        return "not in its space", None
    first = rows[0].case
    cluster = find_cluster(first.cluster)
    recorded = Recorded(
        traces={row.case.batch: steps[row.case.key] for row in rows}, layers=first.layers, own_batch=first.batch
    )
    wanted = Wanted(cluster=cluster, top=1)
    costs = Costs(recorded=recorded, cluster=cluster, model=load(cluster.device))
    try:
        chosen = find(costs, list(_space(rows)), wanted, Tally())
    except DnnmemError as error:
        return error.message.splitlines()[0], None
    if not chosen:
        return f"nothing fits in {budget_of(cluster, wanted.headroom) / 2**30:.1f} GiB", None
    plan = chosen[0].choice.plan
    same = [row for row in rows if _knobs(row.case.plan) == _knobs(plan)]
    best = max(rows, key=lambda row: row.rate)
    return words(plan) + ("" if same else " (not measured)"), _regret(best, same[0]) if same else None


def _space(rows: Sequence[Row]) -> Iterator[Choice]:
    """The search's own choices of what the group differs in, under all else that its plans have."""
    base = rows[0].case.plan
    policies = {row.case.plan.remat.policy for row in rows}
    names = {"zero3", "accumulation"} | {_REMAT[policy] for policy in policies if _REMAT.get(policy)}
    names |= {"zero2"} if any(not row.case.plan.sharding.reshard_after_forward for row in rows) else set()
    scope = Scope(
        cluster=find_cluster(rows[0].case.cluster),
        gpus=(base.mesh.world_size,),
        global_batch=max(row.estimate.samples for row in rows),
        micro_batches=tuple(sorted({row.case.batch for row in rows})),
        blocks=rows[0].case.layers or 3,
        fields=frozenset(PASSES),
        only=frozenset(names),
    )
    for choice in choices(scope):
        own = choice.plan
        if own.sharding.strategy not in ("zero3", "zero2") or own.optimizer.kernel:
            continue
        sharding = replace(base.sharding, reshard_after_forward=own.sharding.strategy == "zero3", keep_last=True)
        remat = own.remat if len(policies) > 1 else base.remat
        batch = replace(
            base.batch, micro_batch=own.batch.micro_batch, accumulation=own.batch.accumulation
        )  # fmt: skip
        yield replace(choice, plan=replace(base, batch=batch, sharding=sharding, remat=remat))


def _apart(plan: Plan) -> object:
    """What the search does not choose: it must be one for all rows."""
    if plan.sharding.strategy != "zero3" or plan.mesh.tp > 1 or plan.mesh.dp_replicate > 1:
        return repr(plan)
    return replace(
        plan,
        batch=Plan().batch,
        remat=Plan().remat,
        sharding=replace(plan.sharding, reshard_after_forward=True, keep_last=True),
    )


def _knobs(plan: Plan) -> object:
    return plan.batch.micro_batch, plan.remat.policy, plan.sharding.reshard_after_forward


def words(plan: Plan) -> str:
    """What of a plan differs within groups."""
    mesh, sharding = plan.mesh, plan.sharding
    parts = [
        f"{plan.batch.micro_batch} x {plan.batch.accumulation}",
        plan.remat.policy + " recompute" if plan.remat.policy != "none" else "no recompute",
        f"{sharding.strategy} {mesh.dp_replicate} x {mesh.dp_shard}" if mesh.dp_replicate > 1 else "",
        f"{sharding.strategy} over {mesh.dp_shard}" if sharding.strategy == "zero1" and mesh.dp_replicate == 1 else "",
        f"tp {mesh.tp}" if mesh.tp > 1 else "",
        f"pp {mesh.pp}" if mesh.pp > 1 else "",
        "sequence parallel" if plan.tensor.sequence_parallel and sharding.strategy == "ddp" else "",
        "never resharded" if not sharding.reshard_after_forward else "",
        "last block resharded" if not sharding.keep_last else "",
        "compiled" if plan.kernels.fusion in ("blocks", "pointwise") else "",
    ]
    return ", ".join(part for part in parts if part)


def _name(case: Case) -> str:
    sizes = dict(pair.split("=", 1) for pair in case.target_args)
    layers = case.layers or int(sizes["layers"])
    model = _MODELS.get((layers, int(sizes["width"])), f"{layers} x {sizes['width']}")
    site = case.source.split("_")[0]
    return f"{site}, {model}, {case.seq} tokens, {case.plan.mesh.world_size} {case.gpu.split('-')[0]}"


def tables(done: Sequence[Verdict]) -> str:
    """What goes into the docs."""
    lines = ["| group | fastest, as measured | first | same or tied | regret | search | regret |", "|" + "---|" * 7]
    for v in done:
        search = "-" if v.search_regret is None else f"{v.search_regret:.1%}"
        cells = [
            _name(v.best.case), words(v.best.case.plan), words(v.rows[0].case.plan), "yes" if v.ties else "no",
            f"{v.regret:.1%}", v.found, search,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_summary(done), "", "| group | plan | tokens/s and GPU | predicted | peak, GiB |", "|" + "---|" * 5]
    for v in done:
        lines += [_line(v, row) for row in v.rows[:_SHOWN]]
    return "\n".join(lines)


def _line(v: Verdict, row: Row) -> str:
    rate = f"{row.rate:,.0f}" if row.rate else "out of memory"
    estimate = row.estimate
    peak = f"{(estimate.peak_reserved_bytes or 0) / 2**30:.1f}" if estimate.peak_reserved_bytes else "-"
    each = row.case.seq or 1
    predicted = "does not fit" if estimate.fits is False else f"{each / _each(estimate):,.0f}"
    return f"| {_name(v.best.case)} | {words(row.case.plan)} | {rate} | {predicted} | {peak} |"


def _summary(done: Sequence[Verdict]) -> Iterator[str]:
    for names, said in ((SOURCES[:2], "torchtitan and llm-foundry"), (SOURCES, "all")):
        own = [v for v in done if v.best.case.source in names]
        if not own:
            continue
        mean, known = statistics.fmean(v.regret for v in own), statistics.fmean(v.known_regret for v in own)
        yield (
            f"- {said}: {len(own)} groups; the fastest is first in {sum(v.rows[0] is v.best for v in own)}, first or "
            f"tied with it in {sum(v.ties for v in own)}, among the first three in "
            f"{sum(v.best in v.rows[:3] for v in own)}; mean regret {mean:.1%}, worst "
            f"{max(v.regret for v in own):.1%}; mean by the source's own site {known:.1%}"
        )
    asked = [v.search_regret for v in done if v.search_regret is not None]
    if asked:
        mean = statistics.fmean(asked)
        yield f"- the search, where its first plan was measured: {len(asked)} groups, mean regret {mean:.1%}"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", nargs="*", type=Path)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    chosen = groups(case for case in cases(asked.tables or published()) if case.source in SOURCES)
    steps = traces(case for own in chosen for case in own)
    text = tables([verdict(own, steps) for own in chosen])
    print(text)
    if asked.save:
        put("measured groups", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
