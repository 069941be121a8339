"""A check's result in the terminal: a line for each step, then the layers that grew or shrank, and what to know.

regressed  model.py, batch_size 8    9.31 GiB  9.00 GiB  +3.4 %  9.80 GiB
on fake | a10g-24gb | torch 2.14
fc1  +312 MiB  activation; forward, aten.addmm, model.py:12
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dnnmem.cli.check_run import Checked
from dnnmem.cli.render.rich_text import plain
from dnnmem.cli.render.text import place, printable
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


def parts_words(verdict: Verdict) -> str:
    """What changed of the whole, by part, the largest change first; and what the allocator reserves."""
    now, before = verdict.entry, verdict.before
    if before is None:
        return ""
    grown = {
        part: now.parts.get(part, 0) - before.parts.get(part, 0) for part in now.parts.keys() | before.parts.keys()
    }
    words = [f"{part} {signed(n)}" for part, n in sorted(grown.items(), key=lambda item: (-abs(item[1]), item[0])) if n]
    if now.reserved_bytes is not None and before.reserved_bytes is not None:
        words.append(f"reserved {format_bytes(now.reserved_bytes)}, was {format_bytes(before.reserved_bytes)}")
    return "; ".join(words)


def notices(step: Checked) -> Iterator[str]:
    """What a person should know of a step besides its numbers, in sentences."""
    yield from map(printable, _notices(step))


def _notices(step: Checked) -> Iterator[str]:
    verdict = step.verdict
    if verdict is None:
        yield f"{step.name} could not be measured: {_first_line(step)}"
        return
    for reason in verdict.reasons:
        yield f"{step.name}{' is accepted, though' if step.accepted else ' fails:'} {reason}"
    if verdict.before is None and not step.accepted:
        yield f"{step.name} was not compared: the baseline has nothing for {verdict.entry.key.text}"
        yield from (f"the baseline has it for other conditions: {key.text}" for key in verdict.others)
    if verdict.outcome == "improved" and not step.accepted:
        yield f"{step.name} needs less than was accepted; keep it so: dnnmem check --update-baseline"
    before = verdict.before
    if step.limits.max_slowdown is not None and before and before.step_seconds is None and not step.accepted:
        yield f"{step.name}'s time was not compared: the baseline has none, --update-baseline writes it"


def _first_line(step: Checked) -> str:
    return next(iter(step.error.message.splitlines()), "") if step.error else ""


def _sections(found: Sequence[Checked]) -> Iterator[RenderableType]:
    keys = [step.verdict.entry.key for step in found if step.verdict is not None]
    shared = {key.conditions for key in keys}
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("verdict", no_wrap=True)
    table.add_column("step", overflow="fold")
    for name in ("peak", "accepted", "change", "in all"):
        table.add_column(name, justify="right", no_wrap=True)
    for step in found:
        table.add_row(*_row(step, whole=len(shared) > 1))
    yield table
    if len(shared) == 1:
        yield Text(printable(f"on {shared.pop()}"), "dim")
    for step in found:
        if step.verdict is not None and step.verdict.changes and step.verdict.outcome != "ok":
            title = Text(f"{printable(step.name)}: what changed at the peak", "bold")
            yield Group(Text(), title, Text(parts_words(step.verdict)), _blame(step.verdict))
    told = [notice for step in found for notice in notices(step)]
    if told:
        yield Group(Text(), *(Text(notice) for notice in told))


def _row(step: Checked, *, whole: bool) -> tuple[Text, ...]:
    verdict = step.verdict
    if verdict is None:
        return (Text("failed", "bold red"), Text(printable(step.name)), *(Text("-") for _ in range(4)))
    entry, before = verdict.entry, verdict.before
    name = f"{entry.key.step} | {entry.key.conditions}" if whole else entry.key.step
    return (
        Text(verdict.outcome, _STYLES[verdict.outcome]),
        Text(printable(name)),
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
    return printable(f"{place(line.label)}{f' x{line.count}' if line.count > 1 else ''}")


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
    return printable(f"{words}; {line.since}" if line.since else words)
