"""The page of a comparison: how much more or less, in which parts, whose it is, and since which line.

>>> _bar(2, -4, 4), _bar(-4, -4, 4)
((50.0, 25.0), (0.0, 50.0))
"""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.cli.render.difference import Line, fold_changes, headline, when
from dnnmem.cli.render.html.cells import Cell, Column, Row, Table, grown, size, swatch, word
from dnnmem.cli.render.html.curve import outline, ticks
from dnnmem.cli.render.html.page import render
from dnnmem.cli.render.palette import look
from dnnmem.cli.render.text import batch_words
from dnnmem.estimator.diff import Change, Difference
from dnnmem.estimator.profile import Profile


def diff_page(found: Difference) -> str:
    """The page."""
    curves = [side.timeline for side in (found.before, found.after)]
    top = max((int(curve.allocated.max(initial=0)) for curve in curves), default=0)
    zero, bars = _part_bars(found.parts)
    return render(
        "difference.html",
        title=f"dnnmem: {found.before.target} compared with {found.after.target}",
        scripts=("table",),
        found=found,
        headline=headline(found),
        about=[_about(found.before), _about(found.after)],
        tiles=[
            ("A needs", size(found.before.total_bytes), "all known parts"),
            ("B needs", size(found.after.total_bytes), "all known parts"),
            ("change", grown(found.grown_bytes), "B less A"),
        ],
        zero=zero,
        bars=bars,
        parts_table=_parts(found),
        modules=_modules(fold_changes(found.modules)),
        curves=[outline(curve, top) for curve in curves] if top else [],
        ticks=ticks(top),
    )


def _about(profile: Profile) -> str:
    versions = (f"{name} {version}" for name, version in profile.versions.items() if name in ("torch", "dnnmem"))
    where = profile.device + (f" as {profile.gpu}" if profile.gpu else "")
    return " · ".join(filter(None, (profile.target or "?", batch_words(profile.batch), where, ", ".join(versions))))


def _part_bars(changes: Sequence[Change]) -> tuple[float, list[tuple[str, str, str, str, float, float]]]:
    """Where 0 is, in percent; then colour, name, words, exact number, and where a bar begins and how long it is."""
    known = [(change, change.grown_bytes) for change in changes if change.grown_bytes]
    values = [nbytes for _, nbytes in known if nbytes is not None]
    low, high = min([0, *values]), max([0, *values])
    rows = []
    for (change, _), value in zip(known, values, strict=True):
        cell = grown(value)
        x, width = _bar(value, low, high)
        rows.append((swatch(change.kind), look(change.kind).label, cell.text, cell.title, x, width))
    return _bar(0, low, high)[0], rows


def _bar(value: int, low: int, high: int) -> tuple[float, float]:
    """Begin and length of a bar from 0 to `value` on an axis from `low` to `high`, in percent."""
    unit = 100 / (high - low) if high > low else 0.0
    return round((min(value, 0) - low) * unit, 3), round(abs(value) * unit, 3)


def _parts(found: Difference) -> Table:
    rows = [
        Row(cells=[_kind(change.kind), size(change.before_bytes), size(change.after_bytes), grown(change.grown_bytes)])
        for change in found.parts
    ]
    total = [word("total"), size(found.before.total_bytes), size(found.after.total_bytes), grown(found.grown_bytes)]
    columns = [Column("part", number=False), Column("A"), Column("B"), Column("change")]
    return Table(name="parts", caption="Parts of the memory at the peak", columns=columns, rows=rows, total=total)


def _modules(lines: Sequence[Line]) -> Table:
    rows = [
        Row(
            cells=[
                word(line.label),
                _kind(line.kind),
                size(line.before_bytes),
                size(line.after_bytes),
                grown(line.after_bytes - line.before_bytes),
                word(when(line.since), line.since),
            ]
        )
        for line in lines
    ]
    columns = [
        Column("module", number=False),
        Column("kind", number=False),
        Column("A"),
        Column("B"),
        Column("change"),
        Column("since", number=False, title="The first allocation of B that A does not have"),
    ]
    return Table(name="modules", caption="What changed, by module and kind", columns=columns, rows=rows)


def _kind(kind: str) -> Cell:
    return word(look(kind).label, kind=swatch(kind))
