"""A strip whose pieces lie end to end and add up: parts of the memory against a GPU, or shares of a step.

>>> bar = strip([("param", "parameters", 30, "30 B"), ("grad", "gradients", 10, "10 B")], whole=80, label="of 80")
>>> [(piece.x, piece.width) for piece in bar.pieces], bar.mark
([(0.0, 37.5), (37.5, 12.5)], None)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dnnmem.cli.render.html.cells import swatch
from dnnmem.cli.render.stack import parts
from dnnmem.estimator.profile import Profile
from dnnmem.estimator.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece."""

    kind: str
    """Name of its colour."""
    label: str
    """Written in it where there is room."""
    title: str
    """Told on request."""
    x: float
    """Where it begins, in percent of the strip."""
    width: float
    """In percent of the strip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """The pieces from left to right."""

    pieces: tuple[Piece, ...]
    """End to end."""
    label: str
    """The strip in a sentence, for those who cannot see it."""
    mark: float | None = None
    """A limit, in percent of the strip."""
    mark_label: str = ""
    """What the limit is."""


def strip(
    items: Iterable[tuple[str, str, float, str]],
    *,
    whole: float,
    label: str,
    mark: float | None = None,
    mark_label: str = "",
) -> Strip:
    """The strip of `whole` units: each item is its colour, its name, its units and these in words."""
    pieces, at = [], 0.0
    for kind, name, units, words in items:
        width = 100 * units / whole if whole else 0.0
        title = f"{name}: {words}"
        pieces.append(Piece(kind=kind, label=name, title=title, x=round(at, 3), width=round(width, 3)))
        at += width
    limit = None if mark is None or not whole else round(100 * mark / whole, 3)
    return Strip(pieces=tuple(pieces), label=label, mark=limit, mark_label=mark_label)


def memory_strip(profile: Profile) -> Strip:
    """The stack of a profile, as long as the GPU or as what is needed, whichever is more."""
    from dnnmem.cli.render.palette import look

    known = [(part.name, part.nbytes) for part in parts(profile) if part.nbytes]
    usable = profile.usable_bytes
    names = ", ".join(f"{look(name).label} {format_bytes(nbytes)}" for name, nbytes in known)
    return strip(
        [(swatch(name), look(name).label, nbytes, format_bytes(nbytes)) for name, nbytes in known],
        whole=max(profile.total_bytes, usable or 0) * (1.0 if usable is None else 1.02),
        label=f"Memory at the peak: {names}",
        mark=usable,
        mark_label="" if usable is None else f"{format_bytes(usable)} usable on {profile.gpu or 'the GPU'}",
    )
