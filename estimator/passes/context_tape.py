"""What attention over the ranks of a sequence allocates, in order: torch's ring, and Ulysses' swaps.

    ring        forward   k, v copied | k and v as one, sent | kernel | sum in float32 <- kernel, merged, ... | out
                backward  sums in float32 of all three gradients | kernel, those of k and v passed on, ... | cast
    ulysses     sent, received, put in order: for q, k, v, and for out; the same for the gradients, the other way

After torch/distributed/tensor/experimental/_context_parallel/_attention.py (torch 2.14), as the last rank runs it: it
computes with all its queries each time, which takes most; and dnnmem's `context_heads`. Rounds are alike from the third
on, so that no more than `ROUNDS` are written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dnnmem.estimator.trace import Event

ROUNDS = 4
"""Rounds that are told apart: the first, the second, and two that stand for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes on one rank."""

    query: int
    """Of q, out and their gradients."""
    key: int
    """Of k, or of v."""
    logsumexp: int
    """Of it, in float32."""
    wide: int
    """How much larger an element is in float32: 1, or 2 for half precision."""
    ranks: int
    """Ranks of the ring."""
    gathers: bool
    """True if all keys and values are gathered at once."""


@dataclass(slots=True)
class Piece:
    """Some ops in a row that are one of the trace."""

    kind: str
    """`copy`, `attention`, or the kind of a collective."""
    nbytes: int = 0
    """Bytes that a collective sends, or that are copied."""
    takes: int = 0
    """What is read of what others made; 0 = nothing."""
    gives: int = 0
    """What is written that others read; 0 = nothing."""
    events: list[Event] = field(default_factory=list)
    """Of the tape's own storages, -1, -2, ...: `Tape.named` are the trace's."""


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


def ring_forward(sizes: Sizes, kernel: Sequence[Event], out: int, kept: Sequence[int]) -> tuple[Tape, dict[int, int]]:
    """The forward pass; `kernel` makes `out`, a logsumexp and what else is `kept`: by storage, where they end up."""
    t, pair, wide = Tape(), 2 * sizes.key, sizes.query * sizes.wide
    t.piece("copy", 2 * pair)
    copies = [t.new(sizes.key), t.new(sizes.key)]
    flat, arrived = t.new(pair), 0
    last = _send(t, sizes, flat, pair)
    sums = first = lse = 0
    old: list[int] = []
    for i in range(min(sizes.ranks, ROUNDS)):
        if i:
            flat, arrived, last = _next(t, sizes, i, (flat, arrived, last), copies, late=False)
        t.piece("attention")
        made = t.kernel(kernel)
        mine, own = made[out], next((made[k] for k in kept[:1]), 0)
        if not i:
            first = {k: made[k] for k in made if k not in (out, *kept[:1])}
            sums, lse = (t.new(wide) if sizes.wide > 1 else mine), own
            old = [mine] if sizes.wide > 1 else []
            continue
        t.drop(*old)
        block = t.new(wide) if sizes.wide > 1 else mine
        sums, lse = _merged(t, sizes, block, sums, lse)
        old = [mine, *(x for k, x in made.items() if k != out)]
    result = t.new(sizes.query) if sizes.wide > 1 else sums
    t.drop(*(x for x in (sums, flat, arrived, last) if x != result), *old)
    return t, {out: result, **dict.fromkeys(kept[:1], lse), **(first or {})}


def _send(t: Tape, sizes: Sizes, flat: int, pair: int) -> int:
    """The first round's keys and values leave; where those of others come."""
    kind = "all_gather" if sizes.gathers else "send"
    times = sizes.ranks if sizes.gathers else 1
    sent = t.piece(kind, pair * (times if sizes.gathers else _share(sizes)), takes=flat)
    sent.gives = t.new(pair * times)
    return sent.gives


def _share(sizes: Sizes) -> int:
    """Messages that each written one stands for, rounded up."""
    return -(-(sizes.ranks - 1) // max(1, min(sizes.ranks, ROUNDS) - 1))


def _next(
    t: Tape, sizes: Sizes, i: int, buffers: tuple[int, int, int], copies: list[int], *, late: bool
) -> tuple[int, int, int]:
    """Round `i` reads what has arrived, and passes it on unless it is the last one; `late`: what was sent stays on."""
    flat, arrived, last = buffers
    pair = 2 * sizes.key
    t.piece("copy", 2 * pair, takes=last)
    if not late:
        t.drop(flat)
    if i == min(sizes.ranks, ROUNDS) - 1:
        t.drop(*copies, arrived)
        return flat, 0, last
    old, flat = flat, t.new(pair)
    if sizes.gathers:
        t.drop(*(() if late else (flat,)), old, *copies)
        return flat, 0, last
    t.drop(old)
    sent = t.piece("send", pair * _share(sizes), takes=flat)
    sent.gives = t.new(pair)
    t.drop(*copies, arrived)
    return flat, last, sent.gives


def _merged(t: Tape, sizes: Sizes, block: int, sums: int, lse: int) -> tuple[int, int]:
    """`out - sigmoid(lse1 - lse) * (out - out1)`, and the new logsumexp."""
    wide, size = sizes.query * sizes.wide, sizes.logsumexp
    difference = t.new(size)
    factor = t.new(size)
    t.drop(difference)
    apart = t.new(wide)
    scaled = t.new(wide)
    t.drop(factor, apart)
    merged = t.new(wide)
    t.drop(scaled)
    before = t.new(size)
    logs = t.new(size)
    t.drop(before)
    found = t.new(size)
    t.drop(logs, lse, sums, *((block,) if sizes.wide > 1 else ()))
    return merged, found


def ring_backward(sizes: Sizes, kernel: Sequence[Event], gradients: Sequence[int]) -> tuple[Tape, dict[int, int]]:
    """The backward pass; `kernel` makes the three `gradients` of q, k and v: by storage, where they end up."""
    t, pair, wide_pair = Tape(), 2 * sizes.key, 2 * sizes.key * sizes.wide
    t.piece("copy", 2 * pair)
    total = t.new(sizes.query * sizes.wide)
    sums = [t.new(wide_pair // 2), t.new(wide_pair // 2)]
    copies = [t.new(sizes.key), t.new(sizes.key)]
    flat, arrived = t.new(pair), 0
    last = _send(t, sizes, flat, pair)
    old: list[int] = []
    sent = before = 0
    for i in range(min(sizes.ranks, ROUNDS)):
        if i:
            flat, arrived, last = _next(t, sizes, i, (flat, arrived, last), copies, late=True)
        t.piece("attention")
        half = {g: 1 if g == gradients[0] or not i else 2 for g in gradients}
        made = t.kernel([Event(nbytes // half.get(g, 1), s, g) for nbytes, s, g in kernel])
        if i:
            t.pieces[-1].takes = before
            t.drop(*old, sent, *sums)
            sums = [t.new(wide_pair // 2), t.new(wide_pair // 2)]
            sent = t.new(wide_pair)
        else:  # summed in place; its elements are not in order, and are copied to be sent
            parts = [t.new(wide_pair // 2), t.new(wide_pair // 2)]
            sent = t.new(wide_pair)
            t.drop(*reversed(parts))
        old = list(made.values())
        passed = t.piece("send", wide_pair * _share(sizes), takes=sent)
        passed.gives = t.new(wide_pair)
        t.drop(before)
        before = passed.gives
    t.piece("copy", 2 * wide_pair, takes=before)
    query = t.new(sizes.query) if sizes.wide > 1 else total
    t.drop(*(() if query == total else (total,)))
    both = t.new(pair) if sizes.wide > 1 else before
    t.drop(sent, *sums, flat, *old, *(() if both == before else (before,)), arrived, last)
    return t, {gradients[0]: query, gradients[1]: both, gradients[2]: both}


def swapped(t: Tape, nbytes: int) -> int:
    """A tensor whose sequence is swapped for heads, or back: the result."""
    t.piece("copy", 2 * nbytes)
    sent = t.new(nbytes)
    moved = t.piece("all_to_all", nbytes, takes=sent)
    moved.gives = t.new(nbytes)
    t.piece("copy", 2 * nbytes, takes=moved.gives)
    t.drop(sent)
    result = t.new(nbytes)
    t.drop(moved.gives)
    return result
