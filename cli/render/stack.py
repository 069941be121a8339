"""The stack that adds up: every part of the memory at the peak, their total, and the GPU it has to fit into.

>>> verdict(total_bytes=20 * 2**30, usable_bytes=24 * 2**30, gpu="l4", unknown=())
'FITS: 20.00 GiB of the 24.00 GiB usable on l4 (83 %), 4.00 GiB free'
>>> verdict(total_bytes=2**30, usable_bytes=None, gpu=None, unknown=())
'1.00 GiB at the peak; --gpu NAME says whether that fits'
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.palette import look, texture
from dnnmem.estimator.profile import PARTS, Profile
from dnnmem.estimator.units import format_bytes

_ALWAYS = frozenset({"param", "grad", "optimizer", "activation", "temp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One line of the stack."""

    name: str
    """A name of `PARTS`."""
    nbytes: int | None
    """None = not known."""
    share: float | None
    """Of the total, 0 to 1."""


def parts(profile: Profile) -> Iterator[Part]:
    """The stack from bottom to top; parts that are known to be empty are left out, unless every training has them."""
    for name in PARTS:
        nbytes = profile.parts.get(name)
        if nbytes != 0 or name in _ALWAYS:
            share = None if nbytes is None or not profile.total_bytes else nbytes / profile.total_bytes
            yield Part(name=name, nbytes=nbytes, share=share)


def unknown_parts(profile: Profile) -> tuple[str, ...]:
    """Labels of the parts that have no number, which the total therefore leaves out."""
    return tuple(look(name).label for name in PARTS if profile.parts.get(name) is None)


def verdict(
    *, total_bytes: int, usable_bytes: int | None, gpu: str | None, unknown: Sequence[str], is_bound: bool = False
) -> str:
    """One sentence: does it fit, how much is it, how much is free or missing, and what the number leaves out.

    `is_bound`: shapes that nobody knows were taken as large as they can be.
    """
    total = format_bytes(total_bytes)
    if usable_bytes is None:
        alone = " for tensors alone" if unknown else ""
        return f"{total} at the peak{alone}; --gpu NAME says whether that fits"
    without = f", without {_and(unknown)}" if unknown else ""
    place = f"the {format_bytes(usable_bytes)} usable on {gpu or 'the GPU'}"
    if total_bytes <= usable_bytes:
        share = f"{100 * total_bytes / usable_bytes:.0f} %"
        return f"FITS: {total} of {place} ({share}), {format_bytes(usable_bytes - total_bytes)} free{without}"
    bound = ", by an upper bound" if is_bound else ""
    return f"DOES NOT FIT{bound}: {total} is {format_bytes(total_bytes - usable_bytes)} more than {place}{without}"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def verdict_line(profile: Profile) -> Text:
    """The verdict in its colour."""
    sentence = verdict(
        total_bytes=profile.total_bytes,
        usable_bytes=profile.usable_bytes,
        gpu=profile.gpu,
        unknown=unknown_parts(profile),
        is_bound="shapes_bounded" in profile.facts,
    )
    style = {True: "bold green", False: "bold red", None: "bold"}[profile.fits]
    word, colon, rest = sentence.partition(":")
    return Text.assemble((word, style), colon + rest) if colon else Text(sentence, style)


def stack(profile: Profile, *, width: int, color: bool, unicode: bool) -> Table:
    """The table: label, bytes, share, bar; an unknown part has its reason instead of a bar."""
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    room = max(8, min(width - 40, 60))
    for part in parts(profile):
        label, style = look(part.name).label, look(part.name).style
        if part.share is None:
            table.add_row(label, "-", "", Text(reason(part.name, profile), "dim"))
            continue
        bar = texture(part.name, color=color, unicode=unicode) * round(part.share * room)
        table.add_row(label, format_bytes(part.nbytes), percent(part.share), Text(bar, style))
    table.add_row(
        "total", format_bytes(profile.total_bytes), "100.0 %" if profile.total_bytes else "", "", style="bold"
    )
    return table


def reason(part: str, profile: Profile) -> str:
    """Why a part has no number."""
    if profile.usable_bytes is None:
        return "unknown without a GPU (--gpu NAME)"
    return "not known for this GPU" if part == "context" else "not measured"


def percent(share: float) -> str:
    """A share for people.

    >>> percent(0.1234), percent(0.00001), percent(0.0)
    ('12.3 %', '<0.1 %', '0.0 %')
    """
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
