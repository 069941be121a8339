"""Ops that are written down before they are a trace's: what they allocate and free, and what they send.

A tape's own storages are -1, -2, ...; whoever puts its pieces into a trace gives a name to those that live on.

>>> tape = Tape()
>>> result = swapped(tape, 8)
>>> [piece.kind for piece in tape.pieces], tape.sizes == {result: 8}
(['copy', 'all_to_all', 'copy'], True)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dnnmem.estimator.trace import Event


@dataclass(slots=True)
class Piece:
    """Some ops in a row that are one of the trace."""

    kind: str
    """`copy`, `attention`, or the kind of a collective."""
    nbytes: int = 0
    """Bytes that a collective sends, or that are copied."""
    takes: int = 0
    """A storage that it waits for; 0 = none."""
    gives: int = 0
    """Where what a collective brings comes; 0 for other pieces."""
    events: list[Event] = field(default_factory=list)
    """Of the tape's own storages."""


class Tape:
    """Pieces that are being written."""

    def __init__(self) -> None:
        """Empty."""
        self.pieces: list[Piece] = []
        self.sizes: dict[int, int] = {}
        """Of what is alive."""
        self._next = -1

    def piece(self, kind: str, nbytes: int = 0, takes: int = 0) -> Piece:
        """Begin one."""
        self.pieces.append(Piece(kind, nbytes, takes))
        return self.pieces[-1]

    def new(self, nbytes: int) -> int:
        """Allocate."""
        mine, self._next = self._next, self._next - 1
        self.sizes[mine] = nbytes
        self.pieces[-1].events.append(Event(nbytes, 0, mine))
        return mine

    def drop(self, *ids: int) -> None:
        """Free what is still there."""
        for mine in ids:
            nbytes = self.sizes.pop(mine, 0)
            if nbytes:
                self.pieces[-1].events.append(Event(-nbytes, 0, mine))

    def kernel(self, events: Sequence[Event]) -> dict[int, int]:
        """What a kernel allocates, and frees of its own; by storage what it made."""
        made: dict[int, int] = {}
        for nbytes, _, i in events:
            if nbytes > 0:
                made[i] = self.new(nbytes)
            elif i in made and i < 0:
                self.drop(made.pop(i))
        return made


def swapped(t: Tape, nbytes: int, *, copies: bool = True) -> int:
    """Ulysses: a tensor whose positions are swapped for heads, or back; the result. As dnnmem's `context_heads`.

    Args: `copies` is False for what can be sent as it lies.
    """
    sent = 0
    if copies:
        t.piece("copy", 2 * nbytes)
        sent = t.new(nbytes)
    moved = t.piece("all_to_all", nbytes, takes=sent)
    moved.gives = t.new(nbytes)
    t.piece("copy", 2 * nbytes, takes=moved.gives)
    t.drop(sent)
    result = t.new(nbytes)
    t.drop(moved.gives)
    return result
