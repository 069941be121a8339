"""Where a table goes in docs/accuracy.md: between two comments that name it, so that a benchmark can write it anew."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"


def put(name: str, table: str) -> None:
    """Write `table` where the page has `name`. Raises `ValueError` if it has no such place."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    text = PAGE.read_text("utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{PAGE.name} has no place for {name!r}: {begin.strip()} ... {end}")
    PAGE.write_text(f"{before}{begin}{table.strip()}\n{end}{after}", "utf-8")
