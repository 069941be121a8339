"""Ring attention as torch has it: what it allocates, in order, and what it sends.

    forward    k, v copied | both as one, sent | kernel | sums in float32 <- kernel, merged, ...             | out
    backward   sums in float32 of all gradients | kernel, gradients of k and v passed on with a round, ...   | cast

After torch/distributed/tensor/experimental/_context_parallel/_attention.py (torch 2.14). Each rank has an early and a
late part: in round i after the first one, with causal attention, rank r computes with the early half of the keys that
came if i <= r, else with the late half of its queries: the first rank always does this, the last one always that.
Rounds are alike from the third on, so that no more than `ROUNDS` are written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnmem.estimator.passes.context_tape import Tape
from dnnmem.estimator.trace import Event

ROUNDS = 4
"""Rounds that are told apart: the first, the second, and two that stand for the others."""
_SMALL = 64
"""Bytes up to which something is a random state."""

Ring = tuple[Tape, dict[int, int]]
"""What is written down; by storage of the trace, which of the tape's it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes on one rank."""

    query: int
    """Of q and its gradient."""
    out: int
    """Of out and its gradient: rows as wide as v's."""
    key: int
    """Of k."""
    value: int
    """Of v."""
    logsumexp: int
    """Of it, in float32."""
    wide: int
    """How much larger an element is in float32: 1, or 2 for half precision."""
    ranks: int
    """Ranks of the ring."""
    rank: int = 0
    """Which one it is."""
    gathers: bool
    """True if all keys and values are gathered at once."""
    causal: bool
    """True if positions attend to those before them only."""
    apart: tuple[bool, ...] = (False, False, False)
    """Whether each of q, k and v lies head by head already, so that k and v are not copied."""
    samples: int = 0
    """Sequences; 0 = not known."""

    @property
    def pair(self) -> int:
        """Of k and v."""
        return self.key + self.value

    @property
    def joins(self) -> bool:
        """Whether halves of queries are put together, head by head: by all ranks but the last."""
        return self.causal and self.rank < self.ranks - 1

    def has_early_keys(self, i: int) -> bool:
        """Whether the round written as `i` is one of all queries and the early half of keys."""
        last = self.ranks - 1 if i == self.rounds - 1 else i
        return self.causal and 0 < last <= self.rank

    @property
    def rounds(self) -> int:
        """Those that are written down."""
        return min(self.ranks, ROUNDS)

    @property
    def messages(self) -> int:
        """How many each message of a round stands for, rounded up."""
        return -(-(self.ranks - 1) // max(1, self.rounds - 1))


def ring_forward(sizes: Sizes, kernel: Sequence[Event], out: int, kept: Sequence[int]) -> Ring:
    """The forward pass; `kernel` makes `out`, and what else is `kept`, the logsumexp first."""
    t, wide, casts = Tape(), sizes.out * sizes.wide, sizes.wide > 1
    t.piece("copy", 2 * sizes.pair)
    buffers = _Buffers(t, sizes, late=False)
    half = [e if abs(e.nbytes) <= _SMALL else Event(e.nbytes // 2, e.stream, e.storage) for e in kernel]
    t.piece("attention")
    made = t.kernel(kernel)
    named = {i: x for i, x in made.items() if i != out}
    sums, old = (t.new(wide), [made[out]]) if casts else (made[out], [])
    for i in range(1, sizes.rounds):
        buffers.turn(i)
        share = 2 if sizes.causal and not sizes.has_early_keys(i) else 1
        t.piece("attention")
        made = t.kernel(half if share > 1 else kernel)
        t.drop(*old)
        block = t.new(wide // share) if casts else made[out]
        sums, named[kept[0]] = _merged(t, sizes, share, (sums, named[kept[0]]))
        t.drop(*((block,) if casts else ()))
        old = list(made.values())
    named[out] = t.new(sizes.out) if casts else sums
    t.drop(*((sums,) if casts else ()), *buffers.left(), *old)
    return t, named


def _merged(t: Tape, sizes: Sizes, share: int, last: tuple[int, int]) -> tuple[int, int]:
    """`out - sigmoid(lse1 - lse) * (out - out1)`, and the new logsumexp: of half of the queries, then put together."""
    wide, size = sizes.out * sizes.wide // share, sizes.logsumexp // share
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
    t.drop(logs)
    if share == 1:
        t.drop(*reversed(last))
        return merged, found
    whole_lse = _replaced(t, last[1], size * share)
    whole = _replaced(t, last[0], wide * share)
    t.drop(found, merged)
    return whole, whole_lse


class _Buffers:
    """Keys and values that come and go."""

    def __init__(self, t: Tape, sizes: Sizes, *, late: bool) -> None:
        """Copied in order, put together, and sent; `late`: what was sent stays until the next is (backward)."""
        self.t, self.sizes, self.late, self.pair = t, sizes, late, sizes.pair
        both = zip((sizes.key, sizes.value), sizes.apart[1:], strict=True)
        self.copies = [t.new(nbytes) for nbytes, apart in both if not apart]
        self.flat, self.arrived = t.new(self.pair), 0
        times = sizes.ranks if sizes.gathers else 1
        sent = t.piece(
            "all_gather" if sizes.gathers else "send",
            self.pair * (times if sizes.gathers else sizes.messages), takes=self.flat,
        )  # fmt: skip
        sent.gives = self.last = t.new(self.pair * times)

    def turn(self, i: int) -> tuple[int, ...]:
        """Round `i` reads what has arrived, and passes it on unless it is the last one.

        Returns what the kernel of the last round still holds, where that is `late`.
        """
        t, old = self.t, self.flat
        t.piece("copy", 2 * self.pair, takes=self.last)
        if not self.late:
            t.drop(old)
        before, self.copies = (*self.copies, self.arrived), []
        if i == self.sizes.rounds - 1:
            self.arrived = 0
            return self._behind(before)
        self.flat = t.new(self.pair)
        if self.sizes.gathers:
            t.drop(*(() if self.late else (self.flat,)), old)
            return self._behind(before)
        t.drop(old)
        sent = t.piece("send", self.pair * self.sizes.messages, takes=self.flat)
        sent.gives = t.new(self.pair)
        self.arrived, self.last = self.last, sent.gives
        return self._behind(before)

    def _behind(self, before: tuple[int, ...]) -> tuple[int, ...]:
        if not self.late:
            self.t.drop(*before)
        return before

    def left(self) -> tuple[int, int, int]:
        """What is there at the end."""
        return self.flat, self.arrived, self.last


def ring_backward(sizes: Sizes, kernel: Sequence[Event], gradients: Sequence[int]) -> Ring:
    """The backward pass; `kernel` makes the three `gradients` of q, k and v."""
    t, wide, pair = Tape(), sizes.query * sizes.wide, sizes.pair * sizes.wide
    each = sizes.key * sizes.wide, sizes.value * sizes.wide
    t.piece("copy", 2 * sizes.pair)
    total = t.new(wide)
    sums = [t.new(nbytes) for nbytes in each]
    buffers = _Buffers(t, sizes, late=True)
    old: list[int] = []
    sent = passed = lse = 0
    for i in range(sizes.rounds):
        early = sizes.has_early_keys(i)
        behind = buffers.turn(i) if i else ()
        t.piece("attention", takes=passed)
        before, lse = lse, t.new(sizes.logsumexp // 2) if i and sizes.causal and not early else 0
        t.drop(*behind, before)
        made = t.kernel(_halves(sizes, kernel, gradients, early=early) if i else kernel)
        t.drop(*old, sent, *(sums if i else ()))
        last, old = passed, list(made.values())
        if early:  # halves are added, and put together with the other ones
            sums = [t.new(nbytes) for nbytes in each]
            sent = t.new(pair)
        elif i:  # added to where they arrived
            sums, last = [last], 0
            sent = t.new(pair)
        else:  # their elements are not in order, and are copied to be sent
            parts = [t.new(nbytes) for nbytes, apart in zip(each, sizes.apart[1:], strict=True) if not apart]
            sent = t.new(pair)
            t.drop(*reversed(parts))
        message = t.piece("send", pair * sizes.messages, takes=sent)
        message.gives = passed = t.new(pair)
        t.drop(last)
        if i and sizes.causal and not early:
            total = _replaced(t, total, wide)
    t.piece("copy", 2 * pair, takes=passed)
    query = _replaced(t, total, sizes.query) if sizes.wide > 1 else total
    both = t.new(sizes.pair) if sizes.wide > 1 else passed
    flat, *others = buffers.left()
    t.drop(sent, *sums, flat, *old, *(() if both == passed else (passed,)), *others, lse)
    return t, {gradients[0]: query, gradients[1]: both, gradients[2]: both}


def _halves(sizes: Sizes, kernel: Sequence[Event], gradients: Sequence[int], *, early: bool) -> list[Event]:
    """What the kernel makes in rounds after the first one: gradients of half of k and v, or the rest for half of q."""
    found = []
    for nbytes, stream, i in kernel:
        halved = sizes.causal and abs(nbytes) > _SMALL and (i in gradients[1:]) is early
        found.append(Event(nbytes // 2 if halved else nbytes, stream, i))
    return found


def _replaced(t: Tape, old: int, nbytes: int) -> int:
    new = t.new(nbytes)
    t.drop(old)
    return new
