"""Which storages a tensor-parallel rank holds a part of, and how large it is.

matrices, their gradients and states    by rows (columns of their layers), or by columns (rows)
activations                             heads, inner features or vocabulary; the stream along the sequence
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dnnmem.estimator.passes.draft import Life
from dnnmem.estimator.passes.tensor_layout import SPLIT, STREAM, Layout
from dnnmem.estimator.trace import Kind, Op, Storage, Trace
from dnnmem.estimator.trace_copy import storage_like

_SMALL = 64
"""Bytes up to which a storage is a few scalars, such as a random state: never split."""
_RESTS = frozenset({Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER})


def find_split(trace: Trace, layout: Layout, known: Mapping[int, Life], *, sequence: bool) -> set[int]:
    """Storages that a rank holds a part of; with `sequence` the stream is among them."""
    storages = trace.storages
    matrices = layout.column | layout.row
    names = {(storages[i].module, storages[i].name) for i in matrices}
    split = set(matrices)
    for i, s in storages.items():
        if s.kind in {Kind.GRAD, Kind.OPTIMIZER} and (s.module, s.name.split(".")[0]) in names:
            split.add(i)
    kept = {SPLIT, STREAM} if sequence else {SPLIT}
    for k, states in enumerate(layout.state):
        split.update(i for i in trace.ops[k].writes if states.get(i) in kept)
    split.update(i for ids in layout.summed.values() for i in ids if sequence)
    for k, op in enumerate(trace.ops):
        if k < len(layout.state):
            _fill(trace, known, split, op)
        elif (made := [i for i in op.writes if known[i].made == k]) and len(op.reads) % len(made) == 0:
            split.update(w for w, r in zip(made, op.reads, strict=False) if r in split)
    return split - {i for i in split if storages[i].kind is Kind.INPUT or storages[i].nbytes <= _SMALL}


def _fill(trace: Trace, known: Mapping[int, Life], split: set[int], op: Op) -> None:
    """An empty tensor that split results are put into is split."""
    sizes = {trace.storages[i].nbytes for i in op.writes if i in split}
    for i in op.reads:
        made = known[i].made
        if made >= 0 and not trace.ops[made].reads and trace.storages[i].nbytes in sizes:
            split.add(i)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a part is."""

    tp: int
    """Ranks."""
    rows: frozenset[tuple[tuple[str, ...], str]]
    """Row-parallel matrices: module and name."""
    seq: int | None
    """Length of the sequence, where it is known."""

    def nbytes(self, nbytes: int) -> int:
        """Bytes of a part, padded up."""
        return -(-nbytes // self.tp)

    def of(self, s: Storage) -> Storage:
        """The rank's part: even, or padded up for a vocabulary."""
        return storage_like(s, nbytes=self.nbytes(s.nbytes), shape=self._shape(s))

    def _shape(self, s: Storage) -> tuple[int, ...]:
        shape, tp = list(s.shape), self.tp
        order = list(range(len(shape) - 1, -1, -1))
        if s.kind in _RESTS and len(shape) == 2:
            order = [1, 0] if (s.module, s.name.split(".")[0]) in self.rows else [0, 1]
        elif len(shape) >= 4:  # heads are in the middle
            order = sorted([*range(1, len(shape) - 1), 0, len(shape) - 1], key=lambda d: shape[d] == self.seq)
        elif len(shape) == 3 and self.seq in shape[:2] and shape[1] == shape[2]:
            order = [0, 1, 2]
        for d in order:
            if shape[d] % tp == 0:
                shape[d] //= tp
                return tuple(shape)
        if shape:
            shape[order[0]] = -(-shape[order[0]] // tp)
        return tuple(shape)
