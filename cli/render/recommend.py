"""Ranked plans for people: the best one in a sentence, then one line a plan, then why each helps.

#  plan                              peak         step              tokens/s   MFU  bound            USD/Gtok
1  FSDP2 over 8 GPUs, micro-batch 2  61 GiB 81 %  1.37 s within 17 %  47,700    52 %  compute 91 %        92-260
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.rich_text import plain
from dnnmem.cli.render.stack import percent
from dnnmem.estimator.estimate import Estimate
from dnnmem.estimator.report import Candidate, Report
from dnnmem.estimator.units import format_bytes, format_seconds


def print_report(report: Report, console: Console) -> None:
    """Write the report to `console`."""
    for section in _sections(report):
        if console.no_color:
            console.print(plain(section, width=console.width), soft_wrap=True)
        else:
            console.print(section)


def _sections(report: Report) -> Iterator[RenderableType]:
    cluster = report.cluster
    yield Text(
        f"{report.target} on {cluster.gpus} x {cluster.device.name}: {report.objective}, "
        f"{report.global_batch} samples a step, {percent(report.headroom)} of memory kept free"
    )
    rate = report.considered / report.search_seconds if report.search_seconds else 0.0
    yield Text(
        f"{report.considered} plans considered in {report.search_seconds:.1f} s ({rate:,.0f} a second), "
        f"{report.priced} of them priced; the others cannot be better"
    )
    yield Text()
    yield Text(headline(report), "bold red" if report.nothing_fits else "bold green")
    yield Text()
    yield _table(report)
    yield Text()
    yield from (Text(f"{c.rank}: {sentence(c)}") for c in report.candidates)
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
        return f"{told}; your step as it is does not fit"
    mine, theirs = (c.estimate.per_second(c.estimate.samples) for c in (best, base))
    return f"{told}; {mine / theirs:.2f} times the throughput of your step as it is" if mine and theirs else told


def sentence(candidate: Candidate) -> str:
    """Why, what is to be known besides, and what came of running it."""
    told = candidate.why
    if candidate.alters_training:
        told += f" CHANGES TRAINING: {', '.join(candidate.alters_training)}."
    if candidate.tied_with:
        told += f" The time model cannot tell it from {', '.join(f'#{rank}' for rank in candidate.tied_with)}."
    ran = candidate.verified
    if ran is None:
        return told
    if ran.outcome != "ran":
        return f"{told} RUN: {ran.outcome.replace('_', ' ')}: {ran.message}"
    apart = ran.difference(candidate.estimate.peak_reserved_bytes)
    shown = "" if apart is None else f", {100 * apart:+.2f} % from the prediction"
    return f"{told} Run: {format_bytes(ran.peak_reserved_bytes)} reserved{shown}."


def _table(report: Report) -> Table:
    tokens = any(c.estimate.tokens for c in report.candidates)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("#", justify="right")
    table.add_column("plan", ratio=1, min_width=20)
    price = "USD/Gtok" if tokens else "USD/step"
    for name in ("peak", "step", "tokens/s" if tokens else "samples/s", "MFU", "waits for", price):
        table.add_column(name, justify="left" if name == "waits for" else "right")
    rows = ([report.baseline] if report.baseline else []) + list(report.candidates)
    for candidate in rows:
        style = "red" if candidate.estimate.fits is False else "dim" if not candidate.rank else ""
        table.add_row(*_cells(candidate, tokens=tokens), style=style)
    return table


def _cells(candidate: Candidate, *, tokens: bool) -> list[str]:
    found = candidate.estimate
    mark = "*" if candidate.pareto else ""
    _, high = found.interval_seconds
    rate = found.per_second(found.tokens if tokens else found.samples)
    return [
        f"{candidate.rank}{mark}" if candidate.rank else "now",
        ", ".join(candidate.techniques) or "the step as it is",
        memory_cell(found),
        f"{format_seconds(found.step_seconds)}\nwithin {percent(high / found.step_seconds - 1)}",
        "-" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:,.3g}",
        "-" if found.mfu is None else percent(found.mfu),
        bound_cell(found),
        _price(found.usd_per_billion_tokens if tokens else found.usd_per_step),
    ]


def memory_cell(found: Estimate) -> str:
    """The peak of the worst rank with its context, and its share of what is usable."""
    if found.peak_reserved_bytes is None:
        return "-"
    total = found.peak_reserved_bytes + (found.context_bytes or 0)
    verdict = "DOES NOT FIT" if found.fits is False else "fits"
    return f"{format_bytes(total)}\n{verdict}, {percent(total / found.cluster.device.usable_bytes)}"


def bound_cell(found: Estimate) -> str:
    """What the step waits for, the largest shares first."""
    shares = sorted(found.breakdown.items(), key=lambda item: -item[1])
    total = found.step_seconds or 1.0
    return "\n".join(f"{name} {percent(seconds / total)}" for name, seconds in shares[:2] if seconds / total >= 0.005)


def _price(usd: tuple[float, float] | None) -> str:
    return "-" if usd is None else f"{usd[0]:,.3g}-{usd[1]:,.3g}"
