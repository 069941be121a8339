"""Predictions of published rows, printed: errors by source, GPU and strategy, and what is missed.

source        what  rows  predicted  median   mean   worst  rank
vtrain_multi  time    68         68   4.5 %  8.9 %  22.0 %  0.94
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.markdown import cell
from dnnmem.cli.render.rich_text import plain
from dnnmem.estimator.validation.case import Case
from dnnmem.estimator.validation.score import Prediction, Score, scores

_WHAT = {"step_seconds": "time", "peak_reserved_bytes": "reserved", "peak_allocated_bytes": "allocated"}
_HEADS = ("what", "rows", "predicted", "median", "mean", "worst", "rank")
_GROUPS: dict[str, Callable[[Case], str]] = {
    "source": lambda case: case.source,
    "GPU": lambda case: case.gpu or "not known",
    "strategy": lambda case: case.strategy if case.target else "not known",
}
_NOT = ("source", "rows", "not predicted because")


def print_validation(found: Sequence[Prediction], console: Console) -> None:
    """Write the tables to `console`."""
    for number, (heads, rows) in enumerate(_tables(found)):
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        for head in heads:
            table.add_column(head, justify="right" if head in _HEADS[1:] else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        parts: tuple[RenderableType, ...] = (Text(), table) if number else (table,)
        for part in parts:
            if console.no_color:
                console.print(plain(part, width=console.width), soft_wrap=True)
            else:
                console.print(part)


def to_markdown(found: Sequence[Prediction]) -> str:
    """The tables for a document, a newline at its end."""
    lines: list[str] = []
    for heads, rows in _tables(found):
        sides = ("---:" if head in _HEADS[1:] else "---" for head in heads)
        lines += ["", f"| {' | '.join(heads)} |", f"| {' | '.join(sides)} |"]
        lines += [f"| {' | '.join(map(cell, row))} |" for row in rows]
    return "\n".join(lines[1:]) + "\n"


def _tables(found: Sequence[Prediction]) -> Iterator[tuple[Sequence[str], list[list[str]]]]:
    for name, group in _GROUPS.items():
        own = found if name == "source" else [p for p in found if p.predicted is not None]
        rows = [_row(score) for score in scores(own, group)]
        if rows:
            yield (name, *_HEADS), sorted(rows) if name != "source" else rows
    missed = Counter((p.case.source, p.reason) for p in found if p.predicted is None)
    if missed:
        yield _NOT, [[source, str(count), reason] for (source, reason), count in missed.items()]


def _row(score: Score) -> list[str]:
    errors = (score.median_abs_error, score.mean_abs_error, score.worst_abs_error)
    return [
        score.group,
        _WHAT[score.metric],
        str(score.rows),
        str(score.predicted),
        *("-" if error is None else f"{100 * error:.1f} %" for error in errors),
        "-" if score.spearman is None else f"{score.spearman:.3f}",
    ]
