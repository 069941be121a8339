"""The page of a recommendation: the best plan first, all of them ranked, and behind each why, what and how to run it.

>>> _apart(100, 102), _apart(100, None)
('+2.00 %', '-')
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Container, Sequence
from dataclasses import dataclass

from dnnmem.cli.render import estimate as sentences
from dnnmem.cli.render.html.cells import Cell, Column, Table, number, outcome, seconds, share, size, word
from dnnmem.cli.render.html.estimate import bound_strip, estimate_tiles, price_cell, shares, total_bytes
from dnnmem.cli.render.html.page import render
from dnnmem.cli.render.html.pareto import plot
from dnnmem.cli.render.html.strip import Strip
from dnnmem.cli.render.stack import percent
from dnnmem.estimator.families import families
from dnnmem.estimator.plan_text import settings, to_json
from dnnmem.estimator.reasons import memory_words, speed_words
from dnnmem.estimator.report import Candidate, Report, Verified
from dnnmem.estimator.units import format_bytes

FOLDED = "first"
"""Tag of what stands for its family; its check box is set from the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A candidate, ready to be written."""

    candidate: Candidate
    """What it is."""
    name: str
    """`rank 3`, or `your step`."""
    cells: Sequence[Cell]
    """Its line."""
    tags: str
    """What the check boxes above the table can ask for."""
    ties: str
    """Whom it cannot be told apart from, in a sentence; empty for nobody."""
    memory: str
    """One sentence."""
    speed: str
    """One sentence."""
    bounds: Strip
    """What its step waits for."""
    shares: Table
    """The same as a table."""
    verified: Sequence[tuple[str, Cell, Cell, str]]
    """What was predicted and what it needed when it ran: name, the two, their difference."""
    options: str
    """The plan as options of the command line."""
    plan: str
    """The plan as a file."""


def recommend_page(report: Report) -> str:
    """The page."""
    candidates = [*([report.baseline] if report.baseline else []), *report.candidates]
    lines = {family.first.rank for family in families(report.candidates)} | {0}
    tokens = any(c.estimate.tokens for c in candidates)
    usable = report.cluster.device.usable_bytes
    limit = int(usable * (1 - report.headroom))
    best = report.candidates[0] if report.candidates else None
    return render(
        "recommend.html",
        title=f"dnnmem: {report.target} on {report.cluster.name}",
        scripts=("table", "ranking"),
        report=report,
        about=_about(report),
        best=best,
        headline=_headline(report, best),
        tiles=estimate_tiles(best.estimate) if best else [],
        plot=plot(candidates, limit),
        table=Table(name="ranking", caption="Candidates, best first", columns=_columns(tokens=tokens), rows=()),
        entries=[_entry(c, limit, tags=_tags(c, lines), tokens=tokens) for c in candidates],
        filters=_filters([_tags(c, lines) for c in candidates]),
        folded=FOLDED,
        marks={
            "pareto": any(c.pareto for c in candidates),
            "tied": any(c.tied_with for c in candidates),
            "alters": any(c.alters_training for c in candidates),
        },
    )


def _about(report: Report) -> str:
    rate = report.considered / report.search_seconds if report.search_seconds else None
    words = [
        report.cluster.name,
        f"for {report.objective}",
        f"global batch {report.global_batch:,}" if report.global_batch else "",
        f"{percent(report.headroom)} of each GPU stays free",
        f"{report.considered:,} plans considered"
        + (f" ({rate:,.0f} a second)" if rate else "")
        + f", {report.priced:,} priced",
    ]
    return " · ".join(filter(None, words))


def _headline(report: Report, best: Candidate | None) -> str:
    """The answer in a sentence."""
    if report.nothing_fits:
        return f"NOTHING FITS: {report.nothing_fits}"
    if best is None:
        return "No plan was found"
    what = " + ".join(best.techniques) or "the step as it is"
    faster = _faster(best, report.baseline)
    return f"BEST: {what}{faster}"


def _faster(best: Candidate, baseline: Candidate | None) -> str:
    if baseline is None:
        return ""
    if baseline.estimate.fits is False:
        return ", where your step does not fit"
    mine, theirs = best.estimate, baseline.estimate
    if mine.plan == theirs.plan:
        return ", which is your step as it is now"
    return f": {speed_words(mine, theirs)} now, {memory_words(mine, theirs)}"


def _columns(*, tokens: bool) -> list[Column]:
    price = "A billion tokens" if tokens else "A step"
    return [
        Column("rank", low=True),
        Column("plan", number=False, title="What it does beyond the plain step"),
        Column("memory", low=True, title="Of the worst GPU, its CUDA context too; the bar is of what may be used"),
        Column("step time", low=True, title="Seconds of one optimizer step"),
        Column("tokens/s" if tokens else "samples/s", title="All GPUs together"),
        Column("MFU", title="Model flops over what the GPUs could do"),
        Column("USD/B tokens" if tokens else "USD", low=True, title=f"{price} at the cluster's prices, low to high"),
        Column("waits for", number=False, title="What most of the step waits for"),
        Column("executed", title="Reserved memory when the plan ran, and its difference from the prediction"),
    ]


def _entry(c: Candidate, limit: int, *, tags: Sequence[str], tokens: bool) -> Entry:
    found = c.estimate
    plan = json.dumps(to_json(found.plan), indent=2)
    return Entry(
        candidate=c,
        name="your step" if c.rank == 0 else f"rank {c.rank}",
        cells=_cells(c, limit, tokens=tokens),
        tags=" ".join(tags),
        ties=_ties(c),
        memory=sentences.memory_words(found),
        speed=sentences.speed_words(found),
        bounds=bound_strip(found),
        shares=shares(found, name=f"bounds-{c.rank}"),
        verified=_verified(c),
        options=" ".join(f"--set {shlex.quote(setting)}" for setting in settings(found.plan))
        or "(none: the plain step)",
        plan=plan,
    )


def _cells(c: Candidate, limit: int, *, tokens: bool) -> list[Cell]:
    found = c.estimate
    total = total_bytes(found)
    memory = size(total)._replace(bar=None if total is None or not limit else min(total / limit, 1.0))
    count = found.tokens if tokens else found.samples
    rate = found.per_second(count) if count else None
    mfu = Cell("-", None, "not known") if found.mfu is None else share(found.mfu)._replace(bar=None)
    return [
        Cell(str(c.rank) if c.rank else "yours", c.rank),
        word(" + ".join(c.techniques) or "the plain step"),
        memory,
        seconds(found.step_seconds),
        number(rate, ",.0f" if rate and rate >= 100 else ",.3g"),
        mfu,
        price_cell(found.usd_per_billion_tokens if tokens else found.usd_per_step),
        word(found.bound),
        verified_cell(c),
    ]


def verified_cell(candidate: Candidate) -> Cell:
    """What a candidate needed when it ran, beside the prediction."""
    ran = candidate.verified
    if ran is None:
        return Cell("-", None, "not run")
    if ran.outcome != "ran":
        return Cell(outcome(ran.outcome), None, ran.message)
    difference = ran.difference(candidate.estimate.peak_reserved_bytes)
    words = format_bytes(ran.peak_reserved_bytes)
    if difference is not None:
        words += f" ({100 * difference:+.1f} %)"
    return Cell(words, ran.peak_reserved_bytes, f"reserved on {ran.device}: {ran.peak_reserved_bytes:,} bytes")


def _verified(c: Candidate) -> list[tuple[str, Cell, Cell, str]]:
    ran: Verified | None = c.verified
    if ran is None:
        return []
    found = c.estimate
    rows = [
        ("allocated", size(found.peak_allocated_bytes), size(ran.peak_allocated_bytes)),
        ("reserved", size(found.peak_reserved_bytes), size(ran.peak_reserved_bytes)),
        ("step time", seconds(found.step_seconds), seconds(ran.step_seconds)),
        *(
            (f"reserved by rank {one.rank}", size(one.predicted_bytes), size(one.peak_reserved_bytes))
            for one in ran.ranks
            if len(ran.ranks) > 1
        ),
    ]
    return [(name, said, did, _apart(said.key, did.key)) for name, said, did in rows]


def _apart(predicted: float | str | None, executed: float | str | None) -> str:
    if not isinstance(predicted, (int, float)) or not isinstance(executed, (int, float)) or not predicted:
        return "-"
    percents = round(100 * (executed / predicted - 1), 2)
    return f"{percents:+.2f} %" if percents else "0.00 %"


def _tags(c: Candidate, lines: Container[int]) -> list[str]:
    has = {
        FOLDED: c.rank in lines,
        "fits": c.estimate.fits is True,
        "same": not c.alters_training,
        "pareto": c.pareto,
        "ran": c.verified is not None and c.verified.outcome == "ran",
    }
    return [name for name, is_so in has.items() if is_so]


def _filters(tags: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Check boxes that would leave some out, and some over."""
    labels = {
        FOLDED: "one of plans alike in speed and memory",
        "fits": "only what fits",
        "same": "only the same training mathematics",
        "pareto": "only what nothing beats (Pareto)",
        "ran": "only what was run",
    }
    return [(name, words) for name, words in labels.items() if 0 < sum(name in t for t in tags) < len(tags)]


def _ties(c: Candidate) -> str:
    ranks = [f"rank {rank}" if rank else "your step" for rank in c.tied_with]
    if not ranks:
        return ""
    words = ranks[0] if len(ranks) == 1 else f"{', '.join(ranks[:-1])} and {ranks[-1]}"
    return f"The time model cannot tell it apart from {words}."
