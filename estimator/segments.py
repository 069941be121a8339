"""Runs of blocks that are computed again as one, as text: what `Remat.segments` says.

    0-3(2-3),6      blocks 0 to 3 keep the input of 0 alone; while they are computed again, 2 to 3 keep that of 2;
                    block 6 keeps its input; all others keep everything

>>> runs = parse_segments("0-3(2-3),6")
>>> [(run.first, run.last, len(run.inner)) for run in runs], segments_text(runs)
([(0, 3, 1), (6, 6, 0)], '0-3(2-3),6')
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UsageError

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Remat

_TOKEN = re.compile(r"(\d+)(?:-(\d+))?|[(),]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Blocks that follow each other, counted from 0 over the model."""

    first: int
    """First block: its input is kept."""
    last: int
    """Last block, itself among them."""
    inner: tuple[Run, ...] = ()
    """Runs inside, in order: they keep their input alone while this one is computed again."""

    def __contains__(self, block: int) -> bool:
        """True if `block` is one of these."""
        return self.first <= block <= self.last


def parse_segments(text: str, count: int | None = None) -> tuple[Run, ...]:
    """The runs that `text` names. Raises `UsageError` for what is no list of runs in order, within `count` blocks."""
    tokens = [m.group() for m in _TOKEN.finditer(text)]
    if "".join(tokens) != text.replace(" ", ""):
        raise _wrong(text, "it holds numbers of blocks, '-', ',' and '()' only")
    runs, rest = _runs(tokens, 0, text)
    if rest != len(tokens):
        raise _wrong(text, "a ')' closes nothing")
    if count is not None and runs and runs[-1].last >= count:
        raise _wrong(text, f"the model has {count} blocks, 0 to {count - 1}")
    return runs


def blocks_again(remat: Remat, blocks: int) -> int:
    """How many of a model's `blocks` are computed again whole, at least.

    >>> from dnnmem.estimator.plan import Remat
    >>> blocks_again(Remat(policy="every", every=5), 12), blocks_again(Remat(policy="segments", segments="0-3"), 12)
    (2, 4)
    """
    if remat.policy == "full":
        return blocks
    if remat.policy == "every":
        return blocks // remat.every
    if remat.policy == "segments" and not remat.cell:
        return sum(run.last - run.first + 1 for run in parse_segments(remat.segments, blocks))
    return 0


def segments_text(runs: Sequence[Run]) -> str:
    """What `parse_segments` reads."""
    return ",".join(
        (str(run.first) if run.first == run.last else f"{run.first}-{run.last}")
        + (f"({segments_text(run.inner)})" if run.inner else "")
        for run in runs
    )


def _runs(tokens: Sequence[str], at: int, text: str) -> tuple[tuple[Run, ...], int]:
    """Runs from token `at` on, and the token after them."""
    found: list[Run] = []
    while True:
        if at == len(tokens) or not tokens[at][0].isdigit():
            raise _wrong(text, "a run is a block or two with '-' between")
        first, _, last = tokens[at].partition("-")
        run = Run(first=int(first), last=int(last or first))
        at += 1
        if at < len(tokens) and tokens[at] == "(":
            inner, at = _runs(tokens, at + 1, text)
            if at == len(tokens) or tokens[at] != ")":
                raise _wrong(text, "a '(' is not closed")
            at += 1
            run = Run(first=run.first, last=run.last, inner=inner)
        if run.last < run.first or (found and run.first <= found[-1].last):
            raise _wrong(text, "blocks count up")
        if run.inner and (run.inner[0].first < run.first or run.inner[-1].last > run.last):
            raise _wrong(text, f"runs within {run.first}-{run.last} lie inside of it")
        if any((inner.first, inner.last) == (run.first, run.last) for inner in run.inner):
            raise _wrong(text, f"the run within {run.first}-{run.last} is smaller than it")
        found.append(run)
        if at == len(tokens) or tokens[at] != ",":
            return tuple(found), at
        at += 1


def _wrong(text: str, rule: str) -> UsageError:
    return UsageError(f"remat.segments is {text!r}; {rule}", hint="--set remat.segments='0-3(2-3),6'")
