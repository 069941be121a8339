"""What is alive at the peak, in a list that a person reads: storages alike in every layer become one line.

    h.0.attn  aten.mm.default  (8, 1024, 768)          h.0-11.attn  aten.mm.default  (8, 1024, 768)  x12
    h.1.attn  aten.mm.default  (8, 1024, 768)    ->    wte          weight           (50257, 768)
    ...       wte.weight       (50257, 768)

>>> from dnnmem.estimator.trace import Kind, Storage
>>> a, b = (Storage(id=i, nbytes=4, kind=Kind.PARAM, module=("h", str(i)), name="weight") for i in (0, 1))
>>> trace = Trace(ops=(), storages={0: a, 1: b}, pinned=frozenset({0, 1}))
>>> [(line.nbytes, line.count, line.module) for line in alive_groups(trace, 0)]
[(8, 2, 'h.0-1')]
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from dnnmem.estimator.profile import Alive
from dnnmem.estimator.timeline import alive_at
from dnnmem.estimator.trace import Kind, Op, Trace

Path = tuple[str, ...]

MOST_NUMBERS = 4
"""Numbers with gaps between them that a folded path still names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    nbytes: int
    kind: str
    module: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    source: str

    def likeness(self) -> tuple[str, Path, str, tuple[int, ...], str, int]:
        """Equal for blocks that go on one line: all but the indices in the path and the source line."""
        path = tuple("*" if part.isdecimal() else part for part in self.module)
        return (self.kind, path, self.name, self.shape, self.dtype, self.nbytes)


def alive_groups(trace: Trace, index: int, most: int = 40) -> tuple[Alive, ...]:
    """The `most` largest lines of what is alive after event `index` of `timeline(trace)`, largest first.

    Blocks with equal kind, path (numbers aside), name, shape, element type and size share a line; its source is
    the first one's.
    """
    return next(alive_at_moments(trace, [index], most))


def alive_at_moments(trace: Trace, indices: Sequence[int], most: int = 40) -> Iterator[tuple[Alive, ...]]:
    """`alive_groups` at each of `indices`, which ascend, in one pass over the events.

    Raises `IndexError` for an index the timeline has not.
    """
    groups: defaultdict[object, dict[int, _Block]] = defaultdict(dict)
    where: dict[int, object] = {}
    for i in sorted(trace.pinned):
        _put(groups, where, i, _block(trace, i, trace.storages[i].nbytes, None))
    events = trace.events()
    at = 0
    for index in indices:
        for op, event in islice(events, max(index - at, 0)):
            at += 1
            if event.nbytes > 0:
                _put(groups, where, event.storage, _block(trace, event.storage, event.nbytes, trace.ops[op]))
            elif event.nbytes and event.storage in where:
                del groups[where.pop(event.storage)][event.storage]
        if at != index:
            raise IndexError(f"the timeline has entries 0 to {at}, not {index}")
        yield _largest([list(blocks.values()) for blocks in groups.values() if blocks], most)


def held_by_module(trace: Trace, index: int) -> Counter[tuple[str, str]]:
    """Bytes alive after event `index` by module (dotted path) and kind; a temporary is its op's module's."""
    found: Counter[tuple[str, str]] = Counter()
    makers = {e.storage: trace.ops[i].module for i, e in islice(trace.events(), index) if e.storage < 0}
    for i, nbytes in alive_at(trace, index).items():
        storage = trace.storages.get(i)
        module, kind = (storage.module, storage.kind.value) if storage else (makers[i], Kind.TEMP.value)
        found[".".join(module), kind] += nbytes
    return found


def fold_paths(paths: Sequence[Path]) -> str:
    """One dotted path for several that differ in numbers only: `h.0-11.attn`; with gaps `h.2,4,6`, or `h.*` if many."""
    return ".".join(_fold(dict.fromkeys(parts)) for parts in zip(*paths, strict=True))


def _fold(parts: Iterable[str]) -> str:
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    numbers = sorted(map(int, parts))
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers)) if len(numbers) <= MOST_NUMBERS else "*"


def _block(trace: Trace, i: int, nbytes: int, op: Op | None) -> _Block:
    """Storage `i`, or a temporary inside `op`, which made it; None for what lives before the step."""
    name, source = (op.name, op.source) if op else ("", "")
    if i < 0:
        module = op.module if op else ()
        return _Block(nbytes=nbytes, kind=Kind.TEMP.value, module=module, name=name, shape=(), dtype="", source=source)
    s = trace.storages[i]
    return _Block(
        nbytes=nbytes,
        kind=s.kind.value,
        module=s.module,
        name=s.name or name,
        shape=s.shape,
        dtype=s.dtype,
        source=source,
    )


def _put(groups: defaultdict[object, dict[int, _Block]], where: dict[int, object], i: int, block: _Block) -> None:
    if block.nbytes:
        where[i] = block.likeness()
        groups[where[i]][i] = block


def _largest(groups: list[list[_Block]], most: int) -> tuple[Alive, ...]:
    """Blocks of a group are of one size; paths are folded for those that are listed only."""
    sizes = sorted((len(blocks) * blocks[0].nbytes for blocks in groups), reverse=True)
    least = sizes[most - 1] if 0 < most < len(sizes) else 0
    lines = [_line(blocks) for blocks in groups if len(blocks) * blocks[0].nbytes >= least]
    return tuple(sorted(lines, key=lambda line: (-line.nbytes, line.module, line.name))[:most])


def _line(blocks: Sequence[_Block]) -> Alive:
    first = blocks[0]
    return Alive(
        nbytes=sum(block.nbytes for block in blocks),
        count=len(blocks),
        kind=first.kind,
        module=fold_paths([block.module for block in blocks]),
        name=first.name,
        shape=first.shape,
        dtype=first.dtype,
        source=first.source,
    )
