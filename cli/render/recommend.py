"""Ranked plans for people: the best one in a sentence, then one line a plan, then why each helps.

#  plan                              peak         step              tokens/s   MFU  bound            USD/Gtok
1  FSDP2 over 8 GPUs, micro-batch 2  61 GiB 81 %  1.37 s within 17 %  47,700    52 %  compute 91 %        92-260
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.rich_text import plain
from dnnmem.cli.render.stack import percent
from dnnmem.estimator.estimate import Estimate
from dnnmem.estimator.families import Family, families
from dnnmem.estimator.reasons import memory_words, speed_words
from dnnmem.estimator.report import Candidate, Report, Verified
from dnnmem.estimator.units import format_bytes, format_seconds

_WIDE = 96
"""A narrower terminal has no room for MFU and price; --json and --html have them."""


def print_report(report: Report, console: Console, *, all_: bool = False) -> None:
    """Write the report to `console`, plans that are alike in one line unless `all_`."""
    lines = tuple(Family(first=c) for c in report.candidates) if all_ else families(report.candidates)
    for section in _sections(report, lines, wide=console.width >= _WIDE):
        if console.no_color:
            console.print(plain(section, width=console.width), soft_wrap=True)
        else:
            console.print(section)


def _sections(report: Report, lines: Sequence[Family], *, wide: bool) -> Iterator[RenderableType]:
    cluster = report.cluster
    yield Text(
        f"{report.target} on {cluster.gpus} x {cluster.device.name}: {report.global_batch} samples a step, "
        f"for {report.objective}, {100 * report.headroom:.3g} % of memory kept free"
    )
    rate = report.considered / report.search_seconds if report.search_seconds else 0.0
    yield Text(
        f"{report.considered} plans considered in {report.search_seconds:.1f} s ({rate:,.0f} a second), "
        f"{report.priced} of them priced; the others cannot be better"
    )
    yield Text()
    yield Text(headline(report), "bold red" if report.nothing_fits else "bold green")
    if tie := tie_words(report):
        yield Text(tie)
    yield Text()
    yield _table(report, lines, wide=wide)
    yield from _legend(report, lines)
    yield Text()
    yield _reasons(lines)
    if report.notes:
        yield Text()
    yield from (Text(f"note: {note}") for note in report.notes)


def headline(report: Report) -> str:
    """The answer in a sentence."""
    if report.nothing_fits:
        return f"NOTHING FITS: {report.nothing_fits}"
    best, base = report.candidates[0], report.baseline
    told = f"BEST: {', '.join(best.techniques) or 'the step as it is'}"
    if base is None:
        return told
    if base.estimate.fits is False:
        return f"{told}. It fits; your step as it is now does not"
    if best.estimate.plan == base.estimate.plan:
        return f"{told}, which is your step as it is now"
    return f"{told}: {speed_words(best.estimate, base.estimate)} now, {memory_words(best.estimate, base.estimate)}"


def tie_words(report: Report) -> str:
    """Which plans are as good as the first one; empty if none is."""
    near = report.candidates[0].tied_with if report.candidates and not report.nothing_fits else ()
    if not near:
        return ""
    return (
        f"As fast, as far as the time model can tell: plan{'s' if near[1:] else ''} {_ranks(near)}. Choose among "
        "them by memory, or by what you know to run; fewer techniques come first."
    )


def _ranks(ranks: tuple[int, ...]) -> str:
    """Ranks, neighbours folded.

    >>> _ranks((2, 3, 4, 6, 7, 9))
    '2-4, 6, 7 and 9'
    """
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = [w for run in runs for w in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run))]
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def sentence(candidate: Candidate) -> str:
    """Why, what is to be known besides, and what came of running it."""
    told = candidate.why
    if candidate.tied_with:
        told += f" Tied with {_ranks(candidate.tied_with)}."
    if candidate.alters_training:
        told += f" CHANGES TRAINING: {', '.join(candidate.alters_training)}."
    ran = candidate.verified
    if ran is None:
        return told
    if ran.outcome != "ran":
        return f"{told} RUN: {ran.outcome.replace('_', ' ')}: {ran.message}"
    predicted = candidate.estimate.peak_reserved_bytes
    apart = ran.difference(predicted)
    shown = "" if apart is None else f", where {format_bytes(predicted)} were predicted ({100 * apart:+.2f} %)"
    told = f"{told} Run on {ran.device}: {format_bytes(ran.peak_reserved_bytes)} reserved{shown}.{_of_ranks(ran)}"
    if ran.gradient_error is None:
        return told
    return f"{told} Gradients of a step on the CPU are off by {100 * ran.gradient_error:.2g} %."


def _of_ranks(ran: Verified) -> str:
    """What each rank needed, and what the others are like."""
    if len(ran.ranks) < 2:
        return f" {ran.others[0].upper()}{ran.others[1:]}." if ran.others else ""
    told = []
    for one in ran.ranks:
        said = f" of {format_bytes(one.predicted_bytes)} predicted" if one.predicted_bytes else ""
        told.append(f"rank {one.rank} {format_bytes(one.peak_reserved_bytes)}{said}")
    return f" That is the most of {', '.join(told)}; {ran.others}."


def alike_words(family: Family) -> str:
    """Which plans a line stands for besides its own; empty for none."""
    return f"also {_ranks(tuple(c.rank for c in family.alike))}" if family.alike else ""


def _reasons(lines: Sequence[Family]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for family in lines:
        table.add_row(str(family.first.rank), sentence(family.first))
    return table


def _table(report: Report, lines: Sequence[Family], *, wide: bool) -> Table:
    tokens = any(c.estimate.tokens for c in report.candidates)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("#", justify="right")
    table.add_column("plan", ratio=1, min_width=20)
    price = "USD/Gtok" if tokens else "USD/M samples"
    for name in ("peak", "step", "tokens/s" if tokens else "samples/s", "waits for", *(("MFU", price) if wide else ())):
        table.add_column(name, justify="left" if name == "waits for" else "right", no_wrap=True)
    rows = [*([Family(first=report.baseline)] if report.baseline else []), *lines]
    same = micro_words(report.baseline)
    for family in rows:
        candidate = family.first
        style = "red" if candidate.estimate.fits is False else "dim" if not candidate.rank else ""
        told = [words for words in candidate.techniques if words != same or not candidate.rank]
        cells = _cells(candidate, told, tokens=tokens)
        cells[1] += f"\n{alike_words(family)}" if family.alike else ""
        table.add_row(*cells[: len(table.columns)], style=style)
    return table


def micro_words(base: Candidate | None) -> str:
    """What the baseline's micro-batch is called: the plans that keep it need not say so again."""
    return next((words for words in base.techniques if words.startswith("micro-batch")), "") if base else ""


def _legend(report: Report, lines: Sequence[Family]) -> Iterator[Text]:
    yield Text()
    yield Text("peak: with its share of what is usable; step: with where nine of ten lie", "dim")
    if any(candidate.pareto for candidate in report.candidates):
        yield Text("* no other plan is as good in memory, speed and price", "dim")
    if any(family.alike for family in lines):
        yield Text("also: plans as fast, of the same memory, with more techniques; --all tells them too", "dim")


def _cells(candidate: Candidate, told: list[str], *, tokens: bool) -> list[str]:
    found = candidate.estimate
    mark = "*" if candidate.pareto else ""
    rate = found.per_second(found.tokens if tokens else found.samples)
    return [
        f"{candidate.rank}{mark}" if candidate.rank else "now",
        ", ".join(told) or "the step as it is",
        memory_cell(found),
        step_cell(found),
        "-" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:,.3g}",
        bound_cell(found),
        "-" if found.mfu is None else percent(found.mfu),
        _price(found, tokens=tokens),
    ]


def step_cell(found: Estimate) -> str:
    """Seconds, and below them where nine of ten lie."""
    low, high = (format_seconds(seconds) for seconds in found.interval_seconds)
    same = low.rpartition(" ")[2] == high.rpartition(" ")[2]
    return f"{format_seconds(found.step_seconds)}\n{low.partition(' ')[0] if same else low}-{high}"


def memory_cell(found: Estimate) -> str:
    """The peak of the worst rank with its context, and its share of what is usable."""
    if found.peak_reserved_bytes is None:
        return "-"
    total = found.peak_reserved_bytes + (found.context_bytes or 0)
    verdict = ", too big" if found.fits is False else ""
    return f"{format_bytes(total)}\n{percent(total / found.cluster.device.usable_bytes)}{verdict}"


def bound_cell(found: Estimate) -> str:
    """What the step waits for, the largest shares first."""
    shares = sorted(found.breakdown.items(), key=lambda item: -item[1])
    total = found.step_seconds or 1.0
    return "\n".join(
        f"{name} {100 * seconds / total:.0f} %" for name, seconds in shares[:2] if seconds / total >= 0.005
    )


def _price(found: Estimate, *, tokens: bool) -> str:
    usd = found.usd_per_billion_tokens if tokens else found.usd_per_step
    if usd is None:
        return "-"
    low, high = usd if tokens else (1e6 * dollars / max(found.samples, 1) for dollars in usd)
    return f"{low:,.3g}-{high:,.3g}"
