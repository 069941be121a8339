"""Where storages stand in a list of equal blocks when one block is copied, and what the copies are called.

storage of block       0    1 = pattern    2        x -> the x of the block after: `Chain.after`
in the longer model    0    1  1a  1b  1c  2            a copy sees the places of its own: `Chain.resolve`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dnnmem.estimator.block_list import BlockList
from dnnmem.estimator.errors import UnsupportedError

Place = int | None
"""Number of a block, or of a copy; None for none."""


@dataclass(slots=True, kw_only=True)
class Chain:
    """Where storages stand: block `pattern` is copied `copies` times, right after itself."""

    blocks: BlockList
    """The list."""
    pattern: int
    """Number of the block that is copied."""
    copies: int
    """How many copies there are."""
    place: dict[int, int] = field(default_factory=dict)
    """Block that a storage belongs to (-1: made before the first, `count`: after the last); none if all share it."""
    after: dict[int, int] = field(default_factory=dict)
    """The storage that plays its part one block later."""
    before: dict[int, int] = field(default_factory=dict)
    """The same one block earlier."""
    paths: dict[tuple[tuple[str, ...], Place], tuple[str, ...]] = field(default_factory=dict)
    """What `rename` found."""

    def resolve(self, storage: int, seen_from: int, now: int) -> tuple[int, Place]:
        """What block `now` touches where block `seen_from` of the record touched `storage`; also which copy of it."""
        place = self.place.get(storage)
        if place is None:
            return storage, None
        goal = now + place - seen_from
        if goal <= self.pattern:
            return self._walk(storage, place, goal), None
        if goal <= self.pattern + self.copies:
            return self._walk(storage, place, self.pattern), goal
        return self._walk(storage, place, goal - self.copies), None

    def _walk(self, storage: int, place: int, goal: int) -> int:
        for _ in range(abs(goal - place)):
            known = (self.after if goal > place else self.before).get(storage)
            if known is None:
                raise UnsupportedError(
                    f"storage {storage} of block {place} has no counterpart in block {goal}: blocks differ",
                    hint="profile the model with its own number of blocks",
                )
            storage = known
        return storage

    def spread(self, places: Sequence[Place]) -> list[tuple[int, Place]]:
        """Indices of a list in their new order, each with the copy that it stands for (None: itself)."""
        found: list[tuple[int, Place]] = []
        at = 0
        for end in _run_ends(places):
            run = list(range(at, end))
            if places[at] != self.pattern:
                found += [(i, None) for i in run]
            else:
                up = _ascends(places, at, end)
                numbers = range(self.pattern + 1, self.pattern + self.copies + 1)
                copied = [(i, n) for n in (numbers if up else reversed(numbers)) for i in run]
                kept = [(i, None) for i in run]
                found += [*kept, *copied] if up else [*copied, *kept]
            at = end
        return found

    def rename(self, path: tuple[str, ...], copy: Place) -> tuple[str, ...]:
        """Path of a module in the longer model; `copy` is the number of the block where it is a copy."""
        known = self.paths.get((path, copy))
        if known is None:
            known = self.paths[path, copy] = self._rename(path, copy)
        return known

    def _rename(self, path: tuple[str, ...], copy: Place) -> tuple[str, ...]:
        index = self.blocks.index(path)
        if index is None:
            return path
        number = copy if copy is not None else index if index <= self.pattern else index + self.copies
        depth = len(self.blocks.root)
        return (*self.blocks.path(number), *path[depth + 1 :])


@dataclass(slots=True, kw_only=True)
class Names:
    """Ids of the new trace, or of one step of the set-up, where storages have other ids."""

    fresh: Iterator[int]
    """Ids that are free."""
    base: Mapping[int, int] = field(default_factory=dict)
    """Id here -> id in the step; what is missing has the same."""
    own: Mapping[int, int] = field(default_factory=dict)
    """The way back."""
    copies: dict[tuple[int, int], int] = field(default_factory=dict)
    """(storage of the pattern, block) -> its copy."""

    def name(self, found: tuple[int, Place]) -> int:
        """Id of a storage or of its copy."""
        storage, copy = found
        if copy is None:
            return self.own.get(storage, storage)
        known = self.copies.get((storage, copy))
        if known is None:
            known = self.copies[storage, copy] = next(self.fresh)
        return known


def _run_ends(places: Sequence[Place]) -> Iterator[int]:
    for i in range(1, len(places)):
        if places[i] != places[i - 1]:
            yield i
    if places:
        yield len(places)


def _ascends(places: Sequence[Place], at: int, end: int) -> bool:
    """True if blocks count up around the run of the pattern."""
    here = places[at] or 0
    if end < len(places) and (following := places[end]) is not None:
        return following > here
    if at > 0 and (preceding := places[at - 1]) is not None:
        return preceding < here
    return True
