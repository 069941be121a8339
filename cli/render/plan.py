"""A plan for a budget, for people: does it fit and what does it cost, the step drawn, and what every planner answered.

FITS: 10.22 GiB of the 10.50 GiB of the budget (97 %), 23.5 ms a step more (10.8 %)

   planner    peak       extra time       plan
>  rotor      10.22 GiB  23.5 ms  10.8 %  remat.segments=0-1,2-3,4-6
   chen        9.81 GiB  27.1 ms  12.4 %  remat.segments=0-3,4-7,8-11
   checkmate          -                -  does not apply: 1,402 ops are more than its 300
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.rich_text import plain
from dnnmem.cli.render.schedule import picture
from dnnmem.cli.render.stack import percent
from dnnmem.cli.render.text import batch_words, printable
from dnnmem.estimator.plan_text import settings
from dnnmem.estimator.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from dnnmem.cli.plan_run import Answer, Planned
    from dnnmem.estimator.planners.solve import Solution

_PLANNED = ("remat.", "offload.")
"""What planners decide, of a plan's settings."""
_NOTHING = 1e-6
"""Share of a step that is no time."""
_TOLD = {"does_not_fit": "does not fit", "does_not_apply": "does not apply", "failed": "failed"}


def print_plan(found: Planned, console: Console, *, unicode: bool = True) -> None:
    """Write the report to `console`; without `unicode` the step is drawn in ASCII."""
    for section in _sections(found, width=console.width, unicode=unicode):
        if console.no_color:
            console.print(plain(section, width=console.width), soft_wrap=True)
        else:
            console.print(section)


def _sections(found: Planned, *, width: int, unicode: bool) -> Iterator[RenderableType]:
    words = batch_words(found.batch)
    yield Text(f"{found.target}  {words}{', ' if words else ''}on {found.gpu}")
    now = f"{format_bytes(found.plain.peak_bytes)} reserved, {format_seconds(found.plain.seconds)} a step"
    yield Text(f"as it is: {now}")
    yield Text()
    yield Text(headline(found), "bold red" if found.chosen is None else "bold green")
    if found.chosen is not None:
        yield from (Text(line) for line in _about(found, found.chosen))
    if drawn := drawing(found, width=width, unicode=unicode):
        yield Text()
        yield from (Text(line, no_wrap=True) for line in drawn)
    if found.answers:
        yield Text()
        yield _table(found)
    if found.notes:
        yield Text()
    yield from (Text(f"note: {note}") for note in found.notes)


def headline(found: Planned) -> str:
    """The answer in a sentence."""
    chosen, budget = found.chosen, format_bytes(found.budget_bytes)
    if chosen is None:
        least = found.least_bytes
        needs = f"; the least that a plan can keep is {format_bytes(least)}" if least else ""
        return f"NOTHING FITS: {budget} is too little{needs}"
    told = f"FITS: {format_bytes(chosen.cost.peak_bytes)} of the budget of {budget} "
    told += f"({percent(chosen.cost.peak_bytes / found.budget_bytes)})"
    if not chosen.extra_seconds and chosen.cost == found.plain:
        return f"{told} as it is: nothing needs to change"
    return f"{told}, {extra_words(chosen)}"


def extra_words(solution: Solution) -> str:
    """What the plan costs in time."""
    extra = solution.extra_seconds
    share = percent(abs(extra) / solution.plain.seconds) if solution.plain.seconds else "-"
    return f"{format_seconds(abs(extra))} a step {'more' if extra >= 0 else 'less'} ({share})"


def drawing(found: Planned, *, width: int, unicode: bool) -> list[str]:
    """The schedule: drawn, or in the planner's own words where no plan expresses it; empty where nothing changes."""
    if found.chosen is None or found.chosen.cost == found.plain:
        return []
    if found.chosen.found.schedule:
        return found.chosen.found.schedule.splitlines()
    return picture(found.step, width=width, unicode=unicode) if found.step is not None else []


def plan_words(solution: Solution) -> str:
    """The plan as `--set` has it, the policy left out where its segments say it."""
    if solution.plan is None:
        return "predicted only: no plan expresses its schedule"
    named = solution.plan.remat.segments
    told = [
        s for s in settings(solution.plan) if s.startswith(_PLANNED) and not (named and s.startswith("remat.policy"))
    ]
    return " ".join(told).replace("remat.", "") or "as it is"


def _about(found: Planned, chosen: Solution) -> Iterator[str]:
    if chosen.cost == found.plain:
        return
    why = f": {chosen.why}" if chosen.why else ""
    proof = "; no plan of its kind is faster" if chosen.found.optimal else ""
    gap = f"; at most {percent(chosen.found.gap)} from the best" if chosen.found.gap else ""
    yield f"planned by {chosen.planner}{why}{proof}{gap}"
    yield f"plan: {plan_words(chosen)}"
    if chosen.gradient_error == 0:
        yield "loss and gradients: as they are, bit for bit"
    yield from chosen.found.notes
    ran = found.verified
    if ran is None:
        return
    if ran.outcome != "ran":
        yield f"run on a virtual GPU: {ran.outcome.replace('_', ' ')}: {printable(ran.message)}"
        return
    off = ran.difference(chosen.cost.peak_bytes)
    yield f"run on a virtual GPU: {format_bytes(ran.peak_reserved_bytes)} reserved" + (
        "" if off is None else f" ({100 * off:+.2f} %)"
    )


def _table(found: Planned) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), expand=False)
    table.add_column("")
    table.add_column("planner", no_wrap=True)
    for name in ("peak", "extra time", ""):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("plan", overflow="fold", min_width=20)
    for answer in found.answers:
        mine = found.chosen is not None and answer.planner.name == found.chosen.planner
        *cells, words = _cells(answer)
        told = Text(words, overflow="ellipsis", no_wrap=True) if answer.solution is not None else Text(words)
        style = "bold" if mine else "" if answer.solution is not None else "dim"
        table.add_row(">" if mine else "", answer.planner.name, *cells, told, style=style)
    return table


def _cells(answer: Answer) -> tuple[str, str, str, str]:
    solution = answer.solution
    if solution is not None:
        extra, plain_seconds = solution.extra_seconds, solution.plain.seconds
        extra = 0.0 if abs(extra) < _NOTHING * plain_seconds else extra
        share = f"{100 * extra / plain_seconds:.1f} %" if plain_seconds else ""
        seconds = f"{'-' if extra < 0 else ''}{format_seconds(abs(extra))}" if extra else "none"
        return format_bytes(solution.cost.peak_bytes), seconds, share, plan_words(solution)
    return "-", "-", "", f"{_TOLD[answer.outcome]}{_why(answer)}"


def _why(answer: Answer) -> str:
    if answer.needed_bytes is not None:
        return f": {format_bytes(answer.needed_bytes)} is the least"
    if answer.error is None:
        return ""
    return f": {printable(answer.error.message.splitlines()[0])}"
