"""Two steps compared, in the terminal and as Markdown: what it is about, the parts, then modules with blocks folded.

h.0.mlp  activation  +26 MiB              h.0-11.mlp x12  activation  +312 MiB  forward, aten.gelu, model.py:41
h.1.mlp  activation  +26 MiB     ->
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.markdown import cell
from dnnmem.cli.render.palette import look
from dnnmem.cli.render.rich_text import plain
from dnnmem.cli.render.stack import percent
from dnnmem.cli.render.text import batch_words, place
from dnnmem.estimator.alive import fold_paths
from dnnmem.estimator.diff import Change, Difference
from dnnmem.estimator.profile import Profile
from dnnmem.estimator.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Changes that are alike in every block."""

    label: str
    """Folded path, with the number of modules."""
    kind: str
    """What it is."""
    before_bytes: int
    """All of them together."""
    after_bytes: int
    """All of them together."""
    since: str
    """Of the first one."""


def fold_changes(changes: Sequence[Change]) -> list[Line]:
    """Lines for the changes of modules, the largest first; those that differ in an index only are one.

    >>> same = [Change(module=f"h.{i}.mlp", kind="temp", before_bytes=1, after_bytes=3) for i in range(2)]
    >>> fold_changes(same)[0].label, fold_changes(same)[0].after_bytes
    ('h.0-1.mlp x2', 6)
    """
    groups: dict[object, list[Change]] = defaultdict(list)
    for change in changes:
        path = tuple("*" if part.isdecimal() else part for part in change.module.split("."))
        groups[path, change.kind, change.before_bytes, change.after_bytes].append(change)
    lines = []
    for group in groups.values():
        paths = [tuple(change.module.split(".")) for change in group]
        label = place(group[0].module) if len(group) == 1 else f"{fold_paths(paths)} x{len(group)}"
        before, after = (sum(getattr(c, name) or 0 for c in group) for name in ("before_bytes", "after_bytes"))
        since = next((change.since for change in group if change.since), "")
        lines.append(Line(label=label, kind=group[0].kind, before_bytes=before, after_bytes=after, since=since))
    return sorted(lines, key=lambda line: -abs(line.after_bytes - line.before_bytes))


def print_difference(found: Difference, console: Console, *, top: int) -> None:
    """Write the comparison to `console`; `top` lines of modules, 0 for all."""
    for section in _sections(found, top=top):
        if console.no_color:
            console.print(plain(section, width=console.width), soft_wrap=True)
        else:
            console.print(section)


def _sections(found: Difference, *, top: int) -> Iterator[RenderableType]:
    yield Text.assemble(("A  ", "bold"), *_about(found.before))
    yield Text.assemble(("B  ", "bold"), *_about(found.after))
    style = "bold red" if found.grown_bytes > 0 else "bold green" if found.grown_bytes else "bold"
    yield Group(Text(), Text(headline(found), style), Text())
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("part", "A", "B", "change"):
        table.add_column(name, justify="left" if name == "part" else "right", no_wrap=True)
    for row in _parts(found):
        table.add_row(*row)
    yield table
    lines = fold_changes(found.modules)
    if not lines:
        return
    yield Text()
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("module", "kind", "A", "B", "change", "since"):
        table.add_column(name, justify="right" if name in ("A", "B", "change") else "left", overflow="fold")
    for line in lines[: top or None]:
        table.add_row(*_row(line))
    yield table
    if top and len(lines) > top:
        yield Text(f"{len(lines) - top} smaller changes; --top 0 shows all", "dim")


def to_markdown(found: Difference, *, top: int) -> str:
    """The comparison for a comment, a newline at its end."""
    lines = [f"### dnnmem diff: {cell(headline(found))}", ""]
    lines += ["| part | A | B | change |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {' | '.join(map(cell, row))} |" for row in _parts(found)]
    folded = fold_changes(found.modules)[: top or None]
    if folded:
        lines += ["", "| module | kind | A | B | change | since |", "| --- | --- | ---: | ---: | ---: | --- |"]
        lines += [f"| {' | '.join(map(cell, _row(line)))} |" for line in folded]
    return "\n".join(lines) + "\n"


def headline(found: Difference) -> str:
    """The comparison in a sentence."""
    before, after = format_bytes(found.before.total_bytes), format_bytes(found.after.total_bytes)
    if not found.grown_bytes:
        return f"B needs as much as A: {after}"
    more = "more" if found.grown_bytes > 0 else "less"
    share = abs(found.grown_bytes) / found.before.total_bytes if found.before.total_bytes else 0
    return f"B needs {format_bytes(abs(found.grown_bytes))} {more} ({percent(share)}): {after} instead of {before}"


def signed(nbytes: int | None) -> str:
    """A change for people.

    >>> signed(2048), signed(-512), signed(None)
    ('+2.0 KiB', '-512 B', '-')
    """
    if nbytes is None:
        return "-"
    return f"{'-' if nbytes < 0 else '+'}{format_bytes(abs(nbytes))}" if nbytes else "0 B"


def _about(profile: Profile) -> Iterator[str]:
    yield profile.target or "?"
    yield f"  {batch_words(profile.batch)}" if profile.batch else ""
    yield f"  on {profile.device}" + (f" as {profile.gpu}" if profile.gpu else "")
    yield "".join(f", {name} {version}" for name, version in profile.versions.items() if name in ("torch", "dnnmem"))


def _parts(found: Difference) -> Iterator[list[str]]:
    for change in found.parts:
        values = (format_bytes(n) if n is not None else "-" for n in (change.before_bytes, change.after_bytes))
        yield [look(change.kind).label, *values, signed(change.grown_bytes)]
    totals = (found.before.total_bytes, found.after.total_bytes)
    yield ["total", *map(format_bytes, totals), signed(found.grown_bytes)]


def _row(line: Line) -> list[str]:
    return [
        line.label,
        look(line.kind).label,
        format_bytes(line.before_bytes),
        format_bytes(line.after_bytes),
        signed(line.after_bytes - line.before_bytes),
        when(line.since),
    ]


def when(since: str) -> str:
    """The user's line without its folders, else the operator; and the phase.

    >>> when("backward, aten.mul.Tensor, /a/model.py:7"), when("backward, aten.mul.Tensor"), when("before the step")
    ('model.py:7, backward', 'aten.mul.Tensor, backward', 'before the step')
    """
    phase, *rest = since.split(", ")
    return ", ".join([rest[-1].rpartition("/")[2].removesuffix(".default"), phase]) if rest else since
