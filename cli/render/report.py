"""The report of a profile in the terminal: first what decides, then where it comes from.

header      what was profiled, and on what
verdict     does it fit, how much is it
stack       the parts, which add up
peak        when it is needed, and what is alive then
chart       memory over the step
layers      who needs it
advice      what would lower the peak, simulated
notes       what was assumed
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.alive import TOP, alive_table
from dnnmem.cli.render.chart import chart
from dnnmem.cli.render.layers import layer_table
from dnnmem.cli.render.rich_text import plain
from dnnmem.cli.render.rows import choose_depth, fold_rows
from dnnmem.cli.render.stack import stack, verdict_line
from dnnmem.cli.render.text import batch_words, place, short_op
from dnnmem.estimator.profile import Advice, Profile
from dnnmem.estimator.units import format_bytes, format_flops, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How much of a profile to show."""

    depth: int | None = None
    """Sum modules deeper than this into their ancestors; None chooses a depth that a screen holds."""
    everything: bool = False
    """True for every module on its own line, nothing folded."""
    unicode: bool = True
    """False where the terminal has ASCII only."""


def print_report(profile: Profile, console: Console, view: View) -> None:
    """Write the whole report to `console`; without colour as plain lines, which have no blanks at their ends.

    If the beginning scrolls out of a terminal, the verdict stands at the end once more.
    """
    lines = 0
    for section in sections(profile, width=console.width, color=not console.no_color, view=view):
        text = plain(section, width=console.width)
        lines += text.count("\n") + 1
        if console.no_color:
            console.print(text if view.unicode else text.replace("…", "~"), soft_wrap=True)
        else:
            console.print(section)
    if console.is_terminal and lines >= console.height:
        console.print(_section(verdict_line(profile)))


def sections(profile: Profile, *, width: int, color: bool, view: View) -> Iterator[RenderableType]:
    """The report from top to bottom, an empty line before each section but the first."""
    yield header(profile)
    yield _section(verdict_line(profile), Text(), stack(profile, width=width, color=color, unicode=view.unicode))
    yield _section(_title("At the peak"), moment(profile))
    if profile.alive:
        table = alive_table(profile.alive, total_bytes=profile.peak.allocated_bytes, width=width)
        yield _section(_title(f"Alive then, the largest {min(TOP, len(profile.alive))}"), table)
    picture = chart(profile.timeline, profile.phases, width=width, color=color, unicode=view.unicode)
    if picture:
        yield _section(_title("Memory over the step"), *picture)
    if profile.layers:
        yield _layers(profile, width, view)
    if profile.advice:
        yield _section(_title("What would lower the peak"), *(_saving(item) for item in profile.advice))
    if profile.notes:
        yield _section(_title("Notes"), *(_bullet(note) for note in profile.notes))


def header(profile: Profile) -> Text:
    """What was profiled, and on what, in two lines."""
    link = ", " if profile.device == "cuda" else " as "
    where = profile.device if profile.gpu is None else f"{profile.device}{link}{profile.gpu}"
    versions = ", ".join(f"{name} {version}" for name, version in profile.versions.items())
    first = Text(profile.target, "bold")
    if profile.batch:
        first.append(f"  {batch_words(profile.batch)}", "not bold")
    return Text("\n").join([first, Text(f"device {where}; {versions}" if versions else f"device {where}", "dim")])


def moment(profile: Profile) -> Text:
    """When the step needs most: phase, module, operator, the user's line; then step time, where it was measured."""
    peak = profile.peak
    words = Text.assemble("in ", (peak.phase, "bold"), ", in ", (place(peak.module), "bold"))
    if peak.module == "<optimizer>":
        words = Text.assemble("in the ", ("optimizer step", "bold"))
    if peak.op:
        words.append(f", by {short_op(peak.op)}")
    if peak.source:
        words.append(f"\n{peak.source}", "cyan")
    words.append(f"\n{format_bytes(peak.allocated_bytes)} allocated")
    if peak.reserved_bytes is not None:
        words.append(f", {format_bytes(peak.reserved_bytes)} reserved")
    flops = sum(layer.forward_flops + layer.backward_flops for layer in profile.layers)
    if profile.step_seconds is not None:
        words.append(f"; a step takes {format_seconds(profile.step_seconds)}")
    if flops:
        words.append(f"; {format_flops(flops)}FLOP a step".replace("  ", " "))
    return words


def _layers(profile: Profile, width: int, view: View) -> RenderableType:
    depth = view.depth
    if depth is None and not view.everything:
        depth = choose_depth(profile.layers)
    rows = fold_rows(profile.layers, depth=depth, fold=not view.everything)
    total = sum(row.peak_bytes for row in rows)
    table = layer_table(rows, peak_bytes=total, width=width)
    folded, summed = any(row.count > 1 for row in rows), any(row.inside for row in rows)
    hints = []
    if folded:
        hints.append("xN: N equal modules on a line; numbers are of one, at peak and share of all N")
    if summed:
        hints.append(f"summed below depth {depth}; --depth N shows more or less, --all every module")
    elif folded:
        hints.append("--all shows every module")
    if all(row.one.forward_seconds is None for row in rows):
        hints.append(f"seconds are not measured on {profile.device}")
    return _section(_title("Layers"), table, *(Text(hint, "dim") for hint in hints))


def _title(words: str) -> Text:
    return Text(words, "bold underline")


def _saving(item: Advice) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", no_wrap=True, min_width=11)
    grid.add_row(Text(f"-{format_bytes(item.saves_bytes)}", "bold green"), Text(item.text))
    return grid


def _bullet(note: str) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row("-", Text(note))
    return grid


def _section(*parts: RenderableType) -> Group:
    return Group(Text(), *parts)
