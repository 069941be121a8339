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

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dnnmem.estimator.profile import Alive
from dnnmem.estimator.timeline import alive_at
from dnnmem.estimator.trace import Kind, Op, Trace

Path = tuple[str, ...]


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
    groups: defaultdict[object, list[_Block]] = defaultdict(list)
    for block in _blocks(trace, index):
        if block.nbytes:
            groups[block.likeness()].append(block)
    lines = [_line(blocks) for blocks in groups.values()]
    return tuple(sorted(lines, key=lambda line: (-line.nbytes, line.module, line.name))[:most])


def fold_paths(paths: Sequence[Path]) -> str:
    """One dotted path for several that differ in numbers only: `h.0-11.attn`; `h.*.attn` if numbers are missing."""
    return ".".join(_fold(dict.fromkeys(parts)) for parts in zip(*paths, strict=True))


def _fold(parts: Iterable[str]) -> str:
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    numbers = sorted(map(int, parts))
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]}-{numbers[-1]}"
    return "*"


def _blocks(trace: Trace, index: int) -> Iterable[_Block]:
    makers = _makers(trace, index)
    for i, nbytes in alive_at(trace, index).items():
        op = makers.get(i)
        name, source = (op.name, op.source) if op else ("", "")
        if i >= 0:
            s = trace.storages[i]
            yield _Block(
                nbytes=nbytes,
                kind=s.kind.value,
                module=s.module,
                name=s.name or name,
                shape=s.shape,
                dtype=s.dtype,
                source=source,
            )
        else:
            module = op.module if op else ()
            yield _Block(
                nbytes=nbytes, kind=Kind.TEMP.value, module=module, name=name, shape=(), dtype="", source=source
            )


def _makers(trace: Trace, index: int) -> dict[int, Op]:
    """The op that allocated each block last, up to event `index`."""
    makers: dict[int, Op] = {}
    for count, (at, event) in enumerate(trace.events(), start=1):
        if count > index:
            break
        if event.nbytes > 0:
            makers[event.storage] = trace.ops[at]
    return makers


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
