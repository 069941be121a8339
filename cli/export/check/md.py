"""A check as Markdown, for a comment under a pull request or a job's summary: what is, what was, what changed.

The first line is a comment that nobody sees, by which the next run finds this one's comment again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from dnnmem.cli.check_run import Checked
from dnnmem.cli.render.check import TOP, change_words, label_of, notices, parts_words, signed, why_of
from dnnmem.estimator.baseline import Verdict, blame
from dnnmem.estimator.units import format_bytes

MARK = "<!-- dnnmem check -->"
"""What a sticky comment begins with."""
_SIGNS = {"ok": "✅", "improved": "🎉", "new": "🆕", "regressed": "❌", "over budget": "❌"}


def render(found: Sequence[Checked]) -> str:
    """The comment, a newline at its end."""
    return "\n".join(_lines(found)) + "\n"


def code(text: str) -> str:
    r"""`text` as it is, whatever it holds.

    >>> code("<img src=x>`a`"), code("a ``b"), code("")
    ('`` <img src=x>`a` ``', '``` a ``b ```', '')
    """
    text = " ".join(text.split())
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if text else ""


def cell(text: str) -> str:
    r"""The same inside a table, which ends a cell at each bare `|`.

    >>> print(cell("a|b"), cell("a\\|b"))
    ` a\|b ` ` a\|b `
    """
    return re.sub(r"\\*\|", r"\\|", code(text))


def _lines(found: Sequence[Checked]) -> Iterator[str]:
    bad = [step for step in found if step.fails]
    yield MARK
    yield "### dnnmem check: " + (f"{len(bad)} of {len(found)} steps fail" if bad else "memory is as accepted")
    yield ""
    yield "| | step | peak | accepted | change | in all |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for step in found:
        yield _row(step)
    for step in found:
        if step.verdict is not None and step.verdict.outcome != "ok" and step.verdict.changes:
            yield from _blame(step.name, step.verdict)
    told = [notice for step in found for notice in notices(step)]
    yield from ("", *(f"- {code(notice)}" for notice in told)) if told else ()


def _row(step: Checked) -> str:
    verdict = step.verdict
    if verdict is None:
        message = step.error.message if step.error else ""
        return f"| ❌ failed | {cell(step.name)} | {cell(message[:200])} | | | |"
    entry, before = verdict.entry, verdict.before
    cells = [
        f"{_SIGNS[verdict.outcome]} {verdict.outcome}",
        cell(entry.key.text),
        format_bytes(entry.allocated_bytes),
        format_bytes(before.allocated_bytes) if before else "-",
        change_words(verdict),
        format_bytes(entry.total_bytes),
    ]
    return f"| {' | '.join(cells)} |"


def _blame(name: str, verdict: Verdict) -> Iterator[str]:
    lines = blame(verdict)
    yield ""
    yield f"<details><summary>What changed at the peak, {len(lines)} modules</summary>"
    yield ""
    yield code(parts_words(verdict))
    yield ""
    yield f"| layer of {cell(name)} | change | what, and since where |"
    yield "| --- | ---: | --- |"
    for line in lines[:TOP]:
        yield f"| {cell(label_of(line))} | {signed(line.grown_bytes)} | {cell(why_of(line))} |"
    yield ""
    yield "</details>"
