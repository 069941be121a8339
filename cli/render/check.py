"""A check's result in the terminal: a line for each step, then the layers that grew or shrank, and what to know.

regressed  model.py   batch 8, fake, a10g-24gb, torch 2.14      9.31 GiB  was 9.00 GiB  +3.4 %
  fc1  +312 MiB  activation; forward, aten.addmm, model.py:12
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dnnmem.cli.check_run import Checked
from dnnmem.cli.render.rich_text import plain
from dnnmem.cli.render.text import place
from dnnmem.estimator.baseline import Blame, Verdict, blame
from dnnmem.estimator.units import format_bytes

TOP = 10
"""Layers that are blamed."""
_STYLES = {"ok": "green", "improved": "bold green", "regressed": "bold red", "over budget": "bold red", "new": "yellow"}


def print_check(found: Sequence[Checked], console: Console) -> None:
    """Write the result to `console`."""
    for section in _sections(found):
        if console.no_color:
            console.print(plain(section, width=console.width), soft_wrap=True)
        else:
            console.print(section)


def change_words(verdict: Verdict) -> str:
    """The change of the peak: `+3.4 %`; `-` if there is nothing to compare with."""
    return "-" if verdict.increase is None else f"{verdict.increase * 100:+.1f} %"


def notices(step: Checked) -> Iterator[str]:
    """What a person should know of a step besides its numbers, in sentences."""
    verdict = step.verdict
    if verdict is None:
        return
    yield from (f"{step.name} fails: {reason}" for reason in verdict.reasons)
    if verdict.before is None:
        yield f"{step.name} was not compared: the baseline has nothing for {verdict.entry.key.text}"
        for key in verdict.others:
            yield f"the baseline has it for other conditions: {key.text}"


def _sections(found: Sequence[Checked]) -> Iterator[RenderableType]:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("verdict", "step", "conditions"):
        table.add_column(name)
    for name in ("peak", "accepted", "change", "in all"):
        table.add_column(name, justify="right")
    for step in found:
        table.add_row(*_row(step))
    yield table
    for step in found:
        if step.verdict is not None and step.verdict.changes and step.verdict.outcome != "ok":
            yield Group(Text(), Text(f"{step.name}: what changed at the peak", "bold"), _blame(step.verdict))
    told = [notice for step in found for notice in notices(step)]
    if told:
        yield Group(Text(), *(Text(notice) for notice in told))


def _row(step: Checked) -> tuple[Text, ...]:
    verdict = step.verdict
    if verdict is None:
        return (Text("failed", "bold red"), Text(step.name), *(Text("-") for _ in range(5)))
    entry, before = verdict.entry, verdict.before
    conditions = entry.key.text.removeprefix(f"{entry.key.target} | ")
    return (
        Text(verdict.outcome, _STYLES[verdict.outcome]),
        Text(step.name),
        Text(conditions),
        Text(format_bytes(entry.allocated_bytes)),
        Text(format_bytes(before.allocated_bytes) if before else "-"),
        Text(change_words(verdict)),
        Text(format_bytes(entry.total_bytes)),
    )


def _blame(verdict: Verdict) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    lines = blame(verdict)
    for line in lines[:TOP]:
        table.add_row(Text(label_of(line)), Text(signed(line.grown_bytes)), Text(why_of(line)))
    if len(lines) > TOP:
        table.add_row(Text(f"and {len(lines) - TOP} more"))
    return table


def label_of(line: Blame) -> str:
    """A module for people."""
    return f"{place(line.label)}{f' x{line.count}' if line.count > 1 else ''}"


def signed(nbytes: int) -> str:
    """A change of bytes for people.

    >>> signed(1 << 20), signed(-2048)
    ('+1.0 MiB', '-2.0 KiB')
    """
    return f"{'-' if nbytes < 0 else '+'}{format_bytes(abs(nbytes))}"


def why_of(line: Blame) -> str:
    """What of a module changed, and since which line."""
    kinds = sorted(line.kinds.items(), key=lambda item: -abs(item[1]))
    words = ", ".join(f"{kind} {signed(nbytes)}" if len(kinds) > 1 else kind for kind, nbytes in kinds if nbytes)
    return f"{words}; {line.since}" if line.since else words
