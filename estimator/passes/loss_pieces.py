"""The ops of a cross entropy that takes its rows by chunks, as `profilers/apply/cross_entropy.py` runs them.

r rows    logits  [float32]  log_softmax  gather          the gradient in place: exp, minus 1 at the class, scale
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING

from dnnmem.estimator.passes.update import SIZES
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.passes.loss_site import Head

_FLOAT, _LONG = 4, 8


class Pieces:
    """Makes ops at the place of one, and enters the storages that they need."""

    def __init__(self, trace: Trace, place: Op, logits: Storage, chunks: int) -> None:
        """`place`: the op whose module and source they have; `logits` (..., classes) in the product's type."""
        self.trace, self.place, self.dtype = trace, place, logits.dtype
        *rows, self.classes = logits.shape
        self.rows = prod(rows)
        self.step = max(1, -(-self.rows // chunks))
        self.storages: dict[int, Storage] = {}
        """New ones by id."""
        self.kept: list[int] = []
        """Those of them that live as long as the loss."""
        self._next = max(trace.storages) + 1

    def losses(self, logits: int, loss: int) -> list[Op]:
        """The forward pass over logits that are there."""
        ops = [*self._begin(loss)]
        self.kept = [*ops[-1].writes]
        for rows in self._pieces():
            found, made = self._chances(rows, logits, Phase.FORWARD)
            ops += [*made, self._loss(rows, found, loss, gone=found)]
        return ops

    def gradients(self, logits: int, gradient: int, module: tuple[str, ...]) -> list[Op]:
        """The backward pass: the gradient of the logits, which counts what it shall in `module`, and is not shared."""
        size = self.trace.storages[gradient].nbytes
        ops: list[Op] = []
        for n, rows in enumerate(self._pieces()):
            found, made = self._chances(rows, logits, Phase.BACKWARD)
            ops += [*made, *self._slopes(rows, found, Phase.BACKWARD)]
            free = Event(-self._size(found), 0, found)
            ops.append(
                self._op(
                    "aten.mul.out", Phase.BACKWARD, (found,), (gradient,), (free,),
                    rows * self.classes * (_FLOAT + SIZES[self.dtype]),
                )
            )  # fmt: skip
            if not n:
                ops.insert(
                    0, self._op("aten.empty_like.default", Phase.BACKWARD, (), (gradient,), (Event(size, 0, gradient),))
                )
        return ops

    def fused(self, head: Head, loss: int) -> list[Op]:
        """The forward pass from hidden states, their gradient and that of the matrix."""
        start, factor = self._operands(head)
        begun = self._begin(loss)
        targets = begun[-1].writes
        ops = [*begun[:-1], begun[-1], *start]
        width = self.trace.storages[head.weight].shape[1]
        flops = 2 * self.classes * width
        for rows in self._pieces():
            low = self._temp(rows, self.dtype)
            ops.append(self._product(head.hidden, factor, low, rows * flops, self._made(low), width, rows))
            found, made = self._chances(rows, low, Phase.FORWARD, gone=low)
            ops += [*made, self._loss(rows, found, loss), *self._slopes(rows, found, Phase.FORWARD)]
            if self.dtype != "float32":
                low = self._temp(rows, self.dtype)
                ops.append(self._cast(found, low, gone=found))
                found = low
            ops += self._products_back(head, factor, found, rows, width)
        gone = [*targets, *([factor] if factor != head.weight else [])]
        last = self._op("aten.detach.default", Phase.FORWARD, (loss,), (), self._freed(gone))
        return [*ops, last]

    def scaled(self, head: Head, place: Op) -> list[Op]:
        """The backward pass of `fused`: its gradients times the loss's."""
        found = [i for i in (head.of_hidden, head.of_weight, head.of_bias) if i is not None]
        outer = place.reads[:1]
        return [self._op("aten.mul_.Tensor", Phase.BACKWARD, (i, *outer), (i,), (), 2 * self._size(i)) for i in found]

    def _begin(self, loss: int) -> list[Op]:
        """The scalar, and of each row its class and what it counts."""
        scales = self._add(self.rows * _FLOAT, "float32", (self.rows, 1))
        targets = self._add(self.rows * _LONG, "int64", (self.rows, 1))
        valid = -1
        events = [Event(self.rows, 0, valid), Event(self.rows * _FLOAT, 0, scales)]
        events += [Event(self.rows, 0, valid - 1), Event(self.rows * _LONG, 0, targets)]
        events += [Event(-self.rows, 0, valid - 1), Event(-self.rows, 0, valid)]
        mask = self._op("aten.masked_fill.Scalar", Phase.FORWARD, (), (scales, targets), events, self.rows * 30)
        mask = Op(
            name=mask.name, module=mask.module, phase=mask.phase, reads=self._targets(), writes=mask.writes,
            events=mask.events, moved_bytes=mask.moved_bytes, source=mask.source,
        )  # fmt: skip
        size = self._size(loss)
        zero = self._op("aten.zeros.default", Phase.FORWARD, (), (loss,), (Event(size, 0, loss),), size)
        return [zero, mask]

    def _targets(self) -> tuple[int, ...]:
        """What the recorded loss reads of whole numbers."""
        return tuple(i for i in self.place.reads if self.trace.storages[i].dtype == "int64")

    def _operands(self, head: Head) -> tuple[list[Op], int]:
        """The matrix in the product's type, and room for the gradients."""
        ops, factor, weight = [], head.weight, self.trace.storages[head.weight]
        if weight.dtype != self.dtype:
            factor = self._add(weight.nbytes * SIZES[self.dtype] // SIZES[weight.dtype], self.dtype, weight.shape)
            ops.append(self._cast(head.weight, factor))
        for i in (head.of_hidden, head.of_weight, head.of_bias):
            if i is not None:
                size = self._size(i)
                ops.append(self._op("aten.zeros_like.default", Phase.FORWARD, (), (i,), (Event(size, 0, i),), size))
        return ops, factor

    def _products_back(self, head: Head, factor: int, slopes: int, rows: int, width: int) -> Iterator[Op]:
        """What the gradient of some rows' logits adds to those of what made them; it goes."""
        flops = 2 * rows * self.classes * width
        ends = self._freed([slopes])
        todo = [i for i in (head.of_hidden, head.of_weight, head.of_bias) if i is not None]
        for i in todo:
            events = ends if i == todo[-1] else ()
            if i == head.of_hidden:
                yield self._product(slopes, factor, i, flops, events, width, rows)
            elif i == head.of_bias:
                yield self._op("aten.sum.dim_IntList", Phase.FORWARD, (slopes, i), (i,), events, self._size(slopes))
            elif self.trace.storages[i].dtype == self.dtype:
                yield self._product(slopes, head.hidden, i, flops, events, width, rows)
            else:
                term = self._add(self.classes * width * SIZES[self.dtype], self.dtype, (self.classes, width))
                yield self._product(slopes, head.hidden, term, flops, self._made(term), width, rows)
                size = 2 * self._size(i) + self._size(term)
                yield self._op(
                    "aten.add_.Tensor", Phase.FORWARD, (i, term), (i,), (*self._freed([term]), *events), size
                )

    def _chances(self, rows: int, source: int, phase: Phase, gone: int | None = None) -> tuple[int, list[Op]]:
        """Log-probabilities of some rows in float32; what goes on the way."""
        ops = []
        if self.dtype != "float32":
            wide = self._temp(rows, "float32")
            ops.append(self._cast(source, wide, gone=gone, phase=phase, rows=rows))
            source = gone = wide
        found = self._temp(rows, "float32")
        size = self._size(found)
        events = (*self._made(found), *(self._freed([gone]) if gone is not None else ()))
        ops.append(self._op("aten._log_softmax.default", phase, (source,), (found,), events, 2 * size))
        return found, ops

    def _loss(self, rows: int, found: int, loss: int, gone: int | None = None) -> Op:
        """Some rows' losses, added."""
        events = (Event(rows * _FLOAT, 0, -1), Event(-rows * _FLOAT, 0, -1), *(self._freed([gone]) if gone else ()))
        return self._op("aten.gather.default", Phase.FORWARD, (found, loss), (loss,), events, 4 * rows * _FLOAT)

    def _slopes(self, rows: int, found: int, phase: Phase) -> list[Op]:
        """Log-probabilities become the gradient of the logits, in place."""
        size = self._size(found)
        ones = (Event(rows * _FLOAT, 0, -1), Event(-rows * _FLOAT, 0, -1))
        return [
            self._op("aten.exp_.default", phase, (found,), (found,), (), 2 * size),
            self._op("aten.scatter_add_.default", phase, (found,), (found,), ones, 4 * rows * _FLOAT),
            self._op("aten.mul_.Tensor", phase, (found,), (found,), (), 2 * size),
        ]

    def _product(
        self, one: int, other: int, out: int, flops: int, events: Iterable[Event], width: int, rows: int
    ) -> Op:
        moved = (rows * self.classes + rows * width + self.classes * width) * SIZES[self.dtype]
        op = self._op("aten.mm.default", Phase.FORWARD, (one, other), (out,), events, moved)
        return Op(
            name=op.name, module=op.module, phase=op.phase, reads=op.reads, writes=op.writes, events=op.events,
            flops=flops, moved_bytes=moved, source=op.source,
        )  # fmt: skip

    def _cast(
        self, old: int, new: int, *, gone: int | None = None, phase: Phase = Phase.FORWARD, rows: int | None = None
    ) -> Op:
        moved = self._size(new) + (self._size(old) if rows is None else rows * self.classes * SIZES[self.dtype])
        events = (*self._made(new), *(self._freed([gone]) if gone is not None else ()))
        return self._op("aten._to_copy.default", phase, (old,), (new,), events, moved)

    def _op(
        self,
        name: str,
        phase: Phase,
        reads: Iterable[int],
        writes: Iterable[int],
        events: Iterable[Event],
        moved: int = 0,
    ) -> Op:
        return Op(
            name=name, module=self.place.module, phase=phase, reads=tuple(reads), writes=tuple(writes),
            events=tuple(events), moved_bytes=moved, source=self.place.source,
        )  # fmt: skip

    def _pieces(self) -> Iterator[int]:
        """Rows of each."""
        return (min(self.step, self.rows - at) for at in range(0, self.rows, self.step))

    def _temp(self, rows: int, dtype: str) -> int:
        return self._add(rows * self.classes * SIZES[dtype], dtype, (rows, self.classes))

    def _add(self, nbytes: int, dtype: str, shape: tuple[int, ...]) -> int:
        new = self._next
        self._next += 1
        like = Storage(id=new, nbytes=nbytes, kind=Kind.TEMP, dtype=dtype, shape=shape)
        self.storages[new] = storage_like(like, module=self.place.module)
        return new

    def _size(self, i: int) -> int:
        return (self.storages[i] if i in self.storages else self.trace.storages[i]).nbytes

    def _made(self, i: int) -> tuple[Event, ...]:
        return (Event(self._size(i), 0, i),)

    def _freed(self, ids: Iterable[int]) -> tuple[Event, ...]:
        return tuple(Event(-self._size(i), 0, i) for i in ids)
