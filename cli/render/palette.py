"""How each part of the memory is called, coloured and drawn, the same in every chart and table.

A glyph tells the kinds apart where there is no colour; the letter, where there are no block characters either.

>>> LOOKS["activation"].label, LOOKS["activation"].glyph, LOOKS["activation"].letter
('activations', '░', 'a')
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Look(NamedTuple):
    """One part's looks."""

    label: str
    """Its name for people."""
    style: str
    """Its colour, as rich names it."""
    glyph: str
    """Its texture without colour."""
    letter: str
    """Its texture in ASCII."""


LOOKS: Mapping[str, Look] = {
    "param": Look("parameters", "blue", "█", "P"),
    "grad": Look("gradients", "cyan", "▓", "G"),
    "optimizer": Look("optimizer", "magenta", "▒", "O"),
    "activation": Look("activations", "yellow", "░", "a"),
    "temp": Look("temporaries", "red", "*", "t"),
    "input": Look("inputs", "green", "+", "i"),
    "buffer": Look("buffers", "bright_blue", "=", "b"),
    "comm": Look("communication", "bright_magenta", "~", "c"),
    "unknown": Look("unknown", "bright_white", "?", "u"),
    "workspace": Look("workspace", "bright_cyan", ":", "w"),
    "fragmentation": Look("fragmentation", "bright_black", "-", "f"),
    "context": Look("CUDA context", "white", ".", "x"),
}
"""By the names of `profile.PARTS`."""


def look(kind: str) -> Look:
    """The looks of a kind; a kind that this version does not know keeps its own name."""
    return LOOKS.get(kind, Look(kind, "white", "?", "?"))


def texture(kind: str, *, color: bool, unicode: bool) -> str:
    """The character that fills an area of this kind: the colour tells the kinds apart, else the character does."""
    if not unicode:
        return look(kind).letter
    return "█" if color else look(kind).glyph
