r"""A profile as Markdown, for a comment under a pull request or an issue: verdict, stack, peak, layers.

>>> cell("a|b")
'a\\|b'
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dnnmem.cli.render.layers import COLUMNS
from dnnmem.cli.render.palette import look
from dnnmem.cli.render.report import View, header, moment
from dnnmem.cli.render.rows import choose_depth, fold_rows
from dnnmem.cli.render.stack import parts, percent, reason, verdict_line
from dnnmem.estimator.profile import Profile
from dnnmem.estimator.units import format_bytes


def to_markdown(profile: Profile, view: View) -> str:
    """The report, with a newline at its end."""
    return "\n".join(_lines(profile, view)) + "\n"


def cell(text: str) -> str:
    """`text` such that a Markdown table takes it for one cell of plain words."""
    for mark in ("\\", "|", "<", "*", "_", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")


def _lines(profile: Profile, view: View) -> Iterator[str]:
    title, *rest = header(profile).plain.splitlines()
    yield f"### dnnmem profile: {cell(title)}"
    yield ""
    yield from (cell(line) for line in rest)
    yield ""
    yield f"**{cell(verdict_line(profile).plain)}**"
    yield ""
    yield from _table(["part", "bytes", "share"], "lrr", [*_stack(profile)])
    yield ""
    yield "Peak: " + cell("; ".join(moment(profile).plain.splitlines()))
    yield ""
    yield from _layers(profile, view)
    yield from (f"- -{format_bytes(item.saves_bytes)}: {cell(item.text)}" for item in profile.advice)
    yield from (f"- {cell(note)}" for note in profile.notes)


def _stack(profile: Profile) -> Iterator[list[str]]:
    for part in parts(profile):
        share = reason(part.name, profile) if part.share is None else percent(part.share)
        yield [look(part.name).label, format_bytes(part.nbytes), share]
    yield ["**total**", f"**{format_bytes(profile.total_bytes)}**", ""]


def _layers(profile: Profile, view: View) -> Iterator[str]:
    depth = view.depth if view.depth or view.everything else choose_depth(profile.layers)
    rows = fold_rows(profile.layers, depth=depth, fold=not view.everything)
    if not rows:
        return
    total = sum(row.peak_bytes for row in rows)
    shown = [column for column in COLUMNS if any(column.cell(row, total) for row in rows)]
    heads = [column.head or "times" for column in shown]
    lines = [[cell(column.cell(row, total)) for column in shown] for row in rows]
    yield from _table(heads, "".join("l" if column.left else "r" for column in shown), lines)
    yield ""


def _table(heads: Sequence[str], sides: str, lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join('---' if side == 'l' else '---:' for side in sides)} |"
    for line in lines:
        yield f"| {' | '.join(line)} |"
