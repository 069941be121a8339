"""The ops of a cross entropy that takes its rows by chunks, as `profilers/apply/cross_entropy.py` runs them.

r rows    logits  [float32]  log_softmax  gather          the gradient in place: exp, minus 1 at the class, scale
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING

from dnnmem.estimator.passes.update import SIZES
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace

if TYPE_CHECKING:
    from dnnmem.estimator.passes.loss_site import Head

_FLOAT, _LONG = 4, 8
_BACK = Phase.BACKWARD


class Pieces:
    """Makes ops at the place of one, and enters the storages that they need."""

    def __init__(self, trace: Trace, place: Op, logits: Storage, chunks: int) -> None:
        """`place`: the op whose module and source they have; `logits` (..., classes) in the product's type."""
        self.trace, self.place, self.dtype, self.module = trace, place, logits.dtype, place.module
        self.rows, self.classes = prod(logits.shape[:-1]), logits.shape[-1]
        self.step = max(1, -(-self.rows // chunks))
        self.storages: dict[int, Storage] = {}
        """New ones by id."""
        self.kept: tuple[int, ...] = ()
        """Those of them that live as long as the loss."""
        self._next = max(trace.storages) + 1

    def losses(self, logits: int, loss: int) -> list[Op]:
        """The forward pass over logits that are there."""
        ops = self._begin(loss)
        self.kept = ops[-1].writes
        for rows in self._pieces():
            found, made = self._chances(rows, logits)
            ops += [*made, self._loss(rows, found, loss, gone=[found])]
        return ops

    def gradients(self, logits: int, gradient: int, module: tuple[str, ...]) -> list[Op]:
        """The backward pass: the gradient of the logits; in `module`, since it counts micro-batches itself."""
        self.module = module
        ops = [self._op("aten.empty_like.default", (), (gradient,), phase=_BACK, events=self._made(gradient))]
        for rows in self._pieces():
            found, made = self._chances(rows, logits, phase=_BACK)
            moved = rows * self.classes * (_FLOAT + SIZES[self.dtype])
            scale = self._op(
                "aten.mul.out", (found,), (gradient,), phase=_BACK, events=self._freed([found]), moved=moved
            )
            ops += [*made, *self._slopes(rows, found, phase=_BACK), scale]
        return ops

    def fused(self, head: Head, loss: int) -> list[Op]:
        """The forward pass from hidden states, their gradient and that of the matrix."""
        ops = self._begin(loss)
        gone = [*ops[-1].writes]
        made, factor = self._operands(head)
        ops += made
        for rows in self._pieces():
            low = self._temp(rows, self.dtype)
            ops.append(self._product(head, (head.hidden, factor), low, rows, self._made(low)))
            found, made = self._chances(rows, low, gone=[low])
            ops += [*made, self._loss(rows, found, loss), *self._slopes(rows, found)]
            if self.dtype != "float32":
                low = self._temp(rows, self.dtype)
                ops.append(self._cast(found, low, self._size(found), gone=[found]))
                found = low
            ops += self._products_back(head, factor, found, rows)
        gone += [factor] if factor != head.weight else []
        return [*ops, self._op("aten.detach.default", (loss,), (), events=self._freed(gone))]

    def scaled(self, head: Head, place: Op) -> list[Op]:
        """The backward pass of `fused`: its gradients times the loss's."""
        outer = place.reads[:1]
        return [
            self._op("aten.mul_.Tensor", (i, *outer), (i,), phase=_BACK, moved=2 * self._size(i))
            for i in head.gradients
        ]

    def _begin(self, loss: int) -> list[Op]:
        """The scalar, and of each row its class and what it counts."""
        scales = self._add(self.rows * _FLOAT, "float32", (self.rows, 1))
        targets = self._add(self.rows * _LONG, "int64", (self.rows, 1))
        valid, ignored = -1, -2
        events = [
            Event(self.rows, 0, valid), *self._made(scales), Event(self.rows, 0, ignored), *self._made(targets),
            Event(-self.rows, 0, ignored), Event(-self.rows, 0, valid),
        ]  # fmt: skip
        classes = tuple(i for i in self.place.reads if self.trace.storages[i].dtype == "int64")
        return [
            self._op("aten.zeros.default", (), (loss,), events=self._made(loss)),
            self._op("aten.masked_fill.Scalar", classes, (scales, targets), events=events, moved=self.rows * 30),
        ]

    def _operands(self, head: Head) -> tuple[list[Op], int]:
        """The matrix in the product's type, and room for the gradients."""
        ops, factor, weight = [], head.weight, self.trace.storages[head.weight]
        if weight.dtype != self.dtype:
            factor = self._add(weight.nbytes * SIZES[self.dtype] // SIZES[weight.dtype], self.dtype, weight.shape)
            ops.append(self._cast(head.weight, factor, weight.nbytes))
        room = (
            self._op("aten.zeros_like.default", (), (i,), events=self._made(i), moved=self._size(i))
            for i in head.gradients
        )
        return [*ops, *room], factor

    def _products_back(self, head: Head, factor: int, slopes: int, rows: int) -> Iterator[Op]:
        """What the gradient of some rows' logits adds to those of what made them; it goes."""
        for i in head.gradients:
            events = self._freed([slopes]) if i == head.gradients[-1] else ()
            if i == head.of_hidden:
                yield self._product(head, (slopes, factor), i, rows, events)
            elif i == head.of_bias:
                yield self._op("aten.sum.dim_IntList", (slopes, i), (i,), events=events, moved=self._size(slopes))
            elif self.trace.storages[i].dtype == self.dtype:
                yield self._product(head, (slopes, head.hidden), i, rows, events)
            else:
                shape = self.trace.storages[head.weight].shape
                term = self._add(shape[0] * shape[1] * SIZES[self.dtype], self.dtype, shape)
                yield self._product(head, (slopes, head.hidden), term, rows, self._made(term))
                moved = 2 * self._size(i) + self._size(term)
                events = (*self._freed([term]), *events)
                yield self._op("aten.add_.Tensor", (i, term), (i,), events=events, moved=moved)

    def _chances(
        self, rows: int, source: int, *, gone: Iterable[int] = (), phase: Phase = Phase.FORWARD
    ) -> tuple[int, list[Op]]:
        """Log-probabilities of some rows in float32; what goes on the way."""
        ops = []
        if self.dtype != "float32":
            wide = self._temp(rows, "float32")
            moved = rows * self.classes * SIZES[self.dtype]
            ops.append(self._cast(source, wide, moved, gone=gone, phase=phase))
            source, gone = wide, [wide]
        found = self._temp(rows, "float32")
        events = (*self._made(found), *self._freed(gone))
        moved = 2 * self._size(found)
        ops.append(self._op("aten._log_softmax.default", (source,), (found,), phase=phase, events=events, moved=moved))
        return found, ops

    def _loss(self, rows: int, found: int, loss: int, gone: Iterable[int] = ()) -> Op:
        """Some rows' losses, added."""
        events = (Event(rows * _FLOAT, 0, -1), Event(-rows * _FLOAT, 0, -1), *self._freed(gone))
        return self._op("aten.gather.default", (found, loss), (loss,), events=events, moved=4 * rows * _FLOAT)

    def _slopes(self, rows: int, found: int, *, phase: Phase = Phase.FORWARD) -> list[Op]:
        """Log-probabilities become the gradient of the logits, in place."""
        moved, ones = 2 * self._size(found), (Event(rows * _FLOAT, 0, -1), Event(-rows * _FLOAT, 0, -1))
        each = ("aten.exp_.default", (), moved), ("aten.scatter_add_.default", ones, 4 * rows * _FLOAT)
        return [
            self._op(name, (found,), (found,), phase=phase, events=events, moved=nbytes)
            for name, events, nbytes in (*each, ("aten.mul_.Tensor", (), moved))
        ]

    def _product(self, head: Head, factors: tuple[int, int], out: int, rows: int, events: Iterable[Event]) -> Op:
        width = self.trace.storages[head.weight].shape[1]
        moved = (rows * self.classes + rows * width + self.classes * width) * SIZES[self.dtype]
        flops = 2 * rows * self.classes * width
        return self._op("aten.mm.default", factors, (out,), events=events, moved=moved, flops=flops)

    def _cast(self, old: int, new: int, read: int, *, gone: Iterable[int] = (), phase: Phase = Phase.FORWARD) -> Op:
        """`read`: bytes of `old` that it casts."""
        events = (*self._made(new), *self._freed(gone))
        moved = read + self._size(new)
        return self._op("aten._to_copy.default", (old,), (new,), phase=phase, events=events, moved=moved)

    def _op(
        self, name: str, reads: Iterable[int], writes: Iterable[int], *, phase: Phase = Phase.FORWARD,
        events: Iterable[Event] = (), moved: int = 0, flops: int = 0,
    ) -> Op:  # fmt: skip
        return Op(
            name=name, module=self.module, phase=phase, reads=tuple(reads), writes=tuple(writes), events=tuple(events),
            moved_bytes=moved, flops=flops, source=self.place.source,
        )  # fmt: skip

    def _pieces(self) -> Iterator[int]:
        """Rows of each."""
        return (min(self.step, self.rows - at) for at in range(0, self.rows, self.step))

    def _temp(self, rows: int, dtype: str) -> int:
        return self._add(rows * self.classes * SIZES[dtype], dtype, (rows, self.classes))

    def _add(self, nbytes: int, dtype: str, shape: tuple[int, ...]) -> int:
        new = self._next
        self._next += 1
        self.storages[new] = Storage(
            id=new, nbytes=nbytes, kind=Kind.TEMP, dtype=dtype, shape=shape, module=self.module
        )
        return new

    def _size(self, i: int) -> int:
        return (self.storages[i] if i in self.storages else self.trace.storages[i]).nbytes

    def _made(self, i: int) -> tuple[Event, ...]:
        return (Event(self._size(i), 0, i),)

    def _freed(self, ids: Iterable[int]) -> tuple[Event, ...]:
        return tuple(Event(-self._size(i), 0, i) for i in ids)
