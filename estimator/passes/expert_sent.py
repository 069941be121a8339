"""What surrounds the experts of a layer: rows that leave for other ranks, rows that arrive, sums that come back.

    before   sort choices | count them for all ranks | tokens, weights: gather rows, all_to_all
    after    all_to_all | rows in the order of tokens, summed over choices

and the same in reverse for gradients. Sizes and order are those of `profilers/apply/expert_rows.py`; whole numbers that
say which row goes where are 8 bytes each.
"""

from __future__ import annotations

from typing import NamedTuple

from dnnmem.estimator.passes.draft import Draft
from dnnmem.estimator.passes.expert_layers import SENT, Layer
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Storage
from dnnmem.estimator.trace_copy import op_like

_INDEX = 8
"""Bytes of a whole number."""


class Arrived(NamedTuple):
    """Storages that the experts are given in the place of the recorded ones."""

    tokens: int
    """Rows of tokens."""
    chosen: int
    """The expert of each."""
    weights: int
    """The weight of each."""


class Sender:
    """Writes the ops around one layer."""

    def __init__(self, draft: Draft, layer: Layer, *, sent: int, arrive: int, room: bool) -> None:
        """Args: rows that leave and arrive; `room`: each expert has so many, and no rank waits for the counts."""
        self.draft, self.layer, self.sent, self.arrive, self.room = draft, layer, sent, arrive, room
        storages = draft.trace.storages
        self.given, self.weight = storages[layer.given], storages[layer.weights]
        self.order = self.place = self.arrived = -1
        """Which choice a row is for; which row a choice has; rows of tokens that arrived."""
        self.chosen = self.weights = self.dropped = -1
        self._ops: list[Op] = []
        self._phase = Phase.FORWARD

    def forward_before(self) -> Arrived:
        """Route, and send tokens and weights."""
        layer = self.layer
        self._phase, self._ops = Phase.FORWARD, []
        self._route()
        self.arrived = self._exchange(self._spread(layer.given, self.given, divided=True), self.given)
        self.weights = self._exchange(self._spread(layer.weights, self.weight, divided=False), self.weight)
        self.draft.before.setdefault(layer.forward[0], []).extend(self._ops)
        return Arrived(tokens=self.arrived, chosen=self.chosen, weights=self.weights)

    def forward_after(self, made: int) -> None:
        """Bring back what the experts `made`; what they were given goes with their call."""
        layer = self.layer
        self._phase, self._ops = Phase.FORWARD, []
        like = self.draft.trace.storages[layer.made]
        found = self._return(made, like)
        self._write("aten.sum.dim_IntList", (found,), layer.made, gone=(found,))
        gone = [made, self.arrived, self.chosen, self.weights]
        gone += [i for i in (self.dropped,) if i >= 0 and not self.draft.storages[i].saved]
        self._free(*gone)
        self.draft.after.setdefault(layer.forward[-1], []).extend(self._ops)

    def backward_before(self) -> int:
        """Send the gradients of the result to where it was made; returns what arrives."""
        layer = self.layer
        self._phase, self._ops = Phase.BACKWARD, []
        like = self.draft.trace.storages[layer.back]
        arrived = self._exchange(self._spread(layer.back, like, divided=True), like)
        inside = (e for k in layer.backward for e in self.draft.trace.ops[k].events)
        gone = any(e.storage == layer.back and e.nbytes < 0 for e in inside)  # with the call that sends it
        self._free(*([layer.back] if gone else []), self.order)
        self.draft.before.setdefault(layer.backward[0], []).extend(self._ops)
        return arrived

    def backward_after(self, given_grad: int, weights_grad: int) -> None:
        """Bring back the gradients of weights and tokens."""
        layer = self.layer
        self._phase, self._ops = Phase.BACKWARD, []
        if weights_grad >= 0:
            like = self.draft.trace.storages[layer.weights_grad]
            back = self._return(weights_grad, like, rows=True)
            self._write("aten.index.Tensor", (back, self.place), layer.weights_grad, gone=(back, weights_grad))
        like = self.draft.trace.storages[layer.given_grad]
        found = self._return(given_grad, like)
        self._write("aten.sum.dim_IntList", (found,), layer.given_grad, gone=(found,))
        self._free(given_grad, self.place, *([self.dropped] if self.dropped >= 0 else []))
        self.draft.after.setdefault(layer.backward[-1], []).extend(self._ops)

    def _route(self) -> None:
        """Which row goes where; known to the host before rows are sent, unless experts have a fixed room."""
        layer, rows, experts = self.layer, self.layer.rows, self.layer.experts
        self.order, values = self._numbers(rows, saved=True), self._numbers(rows)
        recorded = (op for k in layer.forward if (op := self.draft.trace.ops[k]).name.startswith("aten.sort"))
        inside = next(((e for e in op.events if e.storage < 0) for op in recorded), ())
        events = (self._made(values), self._made(self.order), *inside)
        self._op("aten.sort.stable", (layer.chosen,), (values, self.order), (*events, self._gone(values)))
        self.place, steps = self._numbers(rows, saved=True), self._numbers(rows)
        self._op("aten.empty_like.default", (self.order,), (self.place,), (self._made(self.place),))
        self._op("aten.arange.default", (), (steps,), (self._made(steps),))
        self._op("aten.index_put_.default", (self.place, self.order, steps), (self.place,), (self._gone(steps),))
        counts, one = self._numbers(experts), self._numbers(1)
        self._op("aten.new_zeros.default", (), (counts,), (self._made(counts),))
        self._op("aten.new_ones.default", (), (one,), (self._made(one),))
        self._op("aten.scatter_add_.default", (layer.chosen, one), (counts,), (self._gone(one),))
        self.chosen = self._numbers(self.arrive)
        if self.room:
            self._fill(counts)
            return
        arriving, both = self._numbers(experts), self._numbers(2 * experts)
        self._op("aten.empty_like.default", (counts,), (arriving,), (self._made(arriving),))
        self._op(SENT, (counts,), (arriving,), (), moved=_INDEX * experts, lane=Lane.COMM)
        self._op("aten.stack.default", (counts, arriving), (both,), (self._made(both), self._gone(both)))
        gone = (self._gone(counts), self._gone(arriving))
        self._op("aten._to_copy.default", (), (self.chosen,), (self._made(self.chosen), *gone))

    def _fill(self, counts: int) -> None:
        """Rows of a fixed room for each expert, some dropped, some empty."""
        rows, order, place = self.layer.rows, self.order, self.place
        queue, wide = self._numbers(rows), self._numbers(rows)
        self.dropped = self._new(rows, (rows,), "bool", saved=True)
        source, moved = self._numbers(self.sent + 1, saved=True), self._numbers(rows, saved=True)
        events = (self._made(queue), self._made(self.dropped), self._made(wide), self._made(moved), self._gone(wide))
        self._op("aten.where.self", (place, counts), (queue, self.dropped, moved), events)
        self._op("aten.new_zeros.default", (), (source,), (self._made(source),))
        gone = tuple(self._gone(i) for i in (queue, counts, order, place))
        writes = (source, self.chosen)
        self._op("aten.index_put_.default", (moved, source), writes, (self._made(self.chosen), *gone))
        self.order, self.place = source, moved

    def _spread(self, source: int, like: Storage, *, divided: bool) -> int:
        """A row for each choice, in the order of experts; `divided`: choices become tokens first."""
        number = self._numbers(self.sent) if divided and self.layer.choices > 1 else -1
        if number >= 0:
            self._op("aten.floor_divide.default", (self.order,), (number,), (self._made(number),))
        rows = self._rows(like, self.sent)
        events = (self._made(rows), *((self._gone(number),) if number >= 0 else ()))
        self._op("aten.index.Tensor", (source, number if number >= 0 else self.order), (rows,), events)
        return rows

    def _exchange(self, rows: int, like: Storage) -> int:
        """Rows go to the ranks of their experts; returns what arrives."""
        arrived = self._rows(like, self.arrive)
        self._carry(rows, arrived, (self._made(arrived), self._gone(rows)))
        return arrived

    def _return(self, made: int, like: Storage, *, rows: bool = False) -> int:
        """Rows come back; in the order of tokens where they are not `rows` of a number each."""
        back = self._rows(like, self.sent)
        self._carry(made, back, (self._made(back),))
        if rows:
            return back
        found = self._rows(like, self.layer.rows)
        self._op("aten.index.Tensor", (back, self.place), (found,), (self._made(found), self._gone(back)))
        return found

    def _write(self, name: str, reads: tuple[int, ...], into: int, gone: tuple[int, ...]) -> None:
        made = Event(self.draft.storages[into].nbytes, 0, into)
        self._op(name, reads, (into,), (made, *(self._gone(i) for i in gone)))

    def _carry(self, rows: int, made: int, events: tuple[Event, ...]) -> None:
        nbytes = max(self.draft.storages[rows].nbytes, self.draft.storages[made].nbytes)
        self._op(SENT, (rows,), (made,), events, moved=nbytes, lane=Lane.COMM)

    def _free(self, *ids: int) -> None:
        last = self._ops[-1]
        self._ops[-1] = op_like(last, events=(*last.events, *(self._gone(i) for i in ids)))

    def _op(
        self, name: str, reads: tuple[int, ...], writes: tuple[int, ...], events: tuple[Event, ...], *,
        moved: int | None = None, lane: Lane = Lane.COMPUTE,
    ) -> None:  # fmt: skip
        storages = self.draft.storages
        nbytes = sum(storages[i].nbytes for i in (*reads, *writes)) if moved is None else moved
        self._ops.append(
            Op(
                name=name, module=self.layer.module, phase=self._phase, lane=lane, reads=reads, writes=writes,
                events=events, moved_bytes=nbytes,
            )
        )  # fmt: skip

    def _rows(self, like: Storage, rows: int) -> int:
        """A storage of so many rows, each as wide as those of `like`, which has one for each token or choice."""
        of_choice = like.id in {self.layer.weights, self.layer.weights_grad}
        each = self.layer.rows if of_choice else self.layer.tokens
        width = like.nbytes // each
        shape = (rows,) if of_choice else (rows, self.given.shape[-1])
        return self._new(rows * width, shape, like.dtype)

    def _numbers(self, count: int, *, saved: bool = False) -> int:
        return self._new(_INDEX * count, (count,), "int64", saved=saved)

    def _new(self, nbytes: int, shape: tuple[int, ...], dtype: str, *, saved: bool = False) -> int:
        kind = Kind.ACTIVATION if saved else Kind.TEMP
        made = Storage(id=0, nbytes=nbytes, kind=kind, shape=shape, dtype=dtype, module=self.layer.module, saved=saved)
        return self.draft.add(made)

    def _made(self, i: int) -> Event:
        return Event(self.draft.storages[i].nbytes, 0, i)

    def _gone(self, i: int) -> Event:
        return Event(-self.draft.storages[i].nbytes, 0, i)
