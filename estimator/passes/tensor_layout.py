"""Which matrices tensor parallelism splits, and how: read off the data flow of the recorded step.

    stream x --[column: W1 by rows of (out, in)]--> split h --elementwise, attention-->[row: W2 by columns]--> sum --> x

A product that reads the stream is column-parallel and makes a split tensor; one that reads a split tensor is
row-parallel and makes a part of a sum (Shoeybi et al. 2019). Elementwise ops and attention keep a split: heads and
inner features are independent. Embeddings of the batch's tokens and the last product are split along the vocabulary.
A matrix whose split output would meet the stream before a row-parallel one stays whole. *Assumed*, since the
trace holds shapes and not meanings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from dnnmem.estimator.block_list import block_lists
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.passes.remat import PRODUCTS
from dnnmem.estimator.trace import Kind, Op, Phase, Trace


class State(Enum):
    """What a rank holds of a tensor."""

    WHOLE = 0
    """All of it: constants, masks, what is gathered."""
    STREAM = 1
    """The residual stream: all of it, or its part of the sequence under sequence parallelism."""
    SPLIT = 2
    """Its part of heads, inner features or vocabulary."""
    PARTIAL = 3
    """A term of the sum over ranks."""


WHOLE, STREAM, SPLIT, PARTIAL = State


@dataclass(slots=True, kw_only=True)
class Layout:
    """How the step is split."""

    column: set[int] = field(default_factory=set)
    """Matrices split by rows of (out, in), tables along the vocabulary, and biases of the former."""
    row: set[int] = field(default_factory=set)
    """Matrices split by columns of (out, in)."""
    tables: set[int] = field(default_factory=set)
    """Those of `column` that embed tokens."""
    head: set[int] = field(default_factory=set)
    """Ops that make the logits."""
    state: list[dict[int, State]] = field(default_factory=list)
    """By op: the states of what it reads, before, and writes, after it. PARTIAL there is one that stays a sum."""
    whole_for: set[tuple[int, int]] = field(default_factory=set)
    """(op, storage) where a product needs all of a stream tensor."""
    biases: set[tuple[int, int]] = field(default_factory=set)
    """(op, storage) where the gradient of a row-parallel matrix's bias sums a stream tensor."""
    sliced: dict[int, int] = field(default_factory=dict)
    """Whole gradients of gathered logits, each with the first product that takes a part of it."""
    summed: dict[int, list[int]] = field(default_factory=dict)
    """Op after which sums are taken over the ranks, and of what."""


def find_layout(trace: Trace, *, gather_logits: bool) -> Layout:
    """The layout of a step. A trace without pairs of products has none: `row` is empty."""
    whole: set[int] = set()
    while True:
        finder = _Finder(trace, whole, gather_logits=gather_logits)
        unpaired = finder.run()
        if not unpaired - whole:
            return finder.layout
        whole |= unpaired


def check_divides(trace: Trace, layout: Layout, tp: int) -> None:
    """Raise `UnsupportedError` unless matrices and heads divide evenly; tables and what shares them are padded."""
    for i in (layout.column | layout.row) - layout.tables:
        shape = trace.storages[i].shape
        size, what = (shape[1], "columns") if i in layout.row else (shape[0], "rows")
        heads = any(trace.storages[i].module == trace.ops[k].module for k in layout.head)
        if size % tp and not heads:
            name = ".".join((*trace.storages[i].module, trace.storages[i].name))
            raise UnsupportedError(f"{name} has {size} {what}; {size} % tp {tp} = {size % tp}, but it must be 0")
    for op in trace.ops:
        if op.phase is Phase.FORWARD and is_attention(op.name) and op.writes:
            shape = trace.storages[op.writes[0]].shape
            if len(shape) == 4 and shape[1] % tp:
                raise UnsupportedError(
                    f"{'.'.join(op.module)} has {shape[1]} heads; {shape[1]} % tp {tp} = {shape[1] % tp}"
                )


class _Finder:
    def __init__(self, trace: Trace, whole: set[int], *, gather_logits: bool) -> None:
        self.trace, self.whole, self.gather_logits = trace, whole, gather_logits
        self.storages = trace.storages
        self.layout = Layout()
        self.now: dict[int, State] = {}
        self.source: dict[int, set[int]] = {}
        self.writer: dict[int, int] = {}
        lists = block_lists(trace)
        self.in_blocks = [any(some.index(op.module) is not None for some in lists) for op in trace.ops]
        inside = [k for k, op in enumerate(trace.ops) if self.in_blocks[k] and op.phase is Phase.FORWARD]
        self.last_block_op = inside[-1] if inside else len(trace.ops)

    def run(self) -> set[int]:
        """Fill the layout; the matrices whose split meets the stream."""
        for k, op in enumerate(self.trace.ops):
            if op.phase is Phase.STEP:
                break
            found = self._product(k, op) if op.name in PRODUCTS else self._other(k, op)
            if isinstance(found, set):
                return found
            states = {i: self.now[i] for i in op.reads if i in self.now}
            for i in op.writes:
                kind = self.storages[i].kind
                if kind is not Kind.PARAM:
                    states[i] = self.now[i] = found if kind is not Kind.GRAD else self._of_param(i)
                    self.writer[i] = k
            self.layout.state.append(states)
        return set()

    def _of_param(self, i: int) -> State:
        """State of a gradient: that of its parameter."""
        owner = self._owners().get((self.storages[i].module, self.storages[i].name.split(".")[0]))
        return SPLIT if owner in self.layout.column or owner in self.layout.row else WHOLE

    def _owners(self) -> dict[tuple[tuple[str, ...], str], int]:
        if not hasattr(self, "_by_name"):
            self._by_name = {(s.module, s.name): i for i, s in self.storages.items() if s.kind is Kind.PARAM}
        return self._by_name

    def _params(self, op: Op, rank: int) -> list[int]:
        return [i for i in op.reads if self.storages[i].kind is Kind.PARAM and len(self.storages[i].shape) == rank]

    def _product(self, k: int, op: Op) -> State | set[int]:
        layout, params = self.layout, self._params(op, 2)
        data = [i for i in op.reads if self.storages[i].kind is not Kind.PARAM]
        if not params:
            return self._gradient(k, op, data)
        weight, x = params[0], data[0] if data else -1
        state = self._settle(x)
        if weight in self.whole:
            return STREAM
        if weight not in layout.column and weight not in layout.row and op.phase is Phase.FORWARD:
            (layout.row if state is SPLIT else layout.column).add(weight)
            if weight in layout.column:
                layout.column.update(self._params(op, 1))
        outside = not self.in_blocks[k] and k > self.last_block_op
        if weight in layout.column and op.phase is Phase.FORWARD and outside:
            layout.head.add(k)
        if state is STREAM:
            layout.whole_for.add((k, x))
        found = self._of_column(k, op, x, state) if weight in layout.column else PARTIAL if state is SPLIT else SPLIT
        if found is SPLIT:
            self.source.update({key: {weight} for key in op.writes})
        return found

    def _of_column(self, k: int, op: Op, x: int, state: State) -> State:
        """What a product with a column-parallel matrix makes of `x`."""
        if state is WHOLE and op.phase is Phase.BACKWARD:
            self.layout.sliced.setdefault(x, k)
            return PARTIAL
        if state is SPLIT:
            return PARTIAL
        return WHOLE if k in self.layout.head and self.gather_logits else SPLIT

    def _gradient(self, k: int, op: Op, data: Sequence[int]) -> State:
        """A product of two activations: the gradient of a matrix, or a part of attention."""
        states = [self._settle(i) for i in data]
        if SPLIT in states or (WHOLE in states and op.phase is Phase.BACKWARD and self._is_gradient(op)):
            for i, state in zip(data, states, strict=True):
                if state is STREAM:
                    self.layout.whole_for.add((k, i))
                elif state is WHOLE:
                    self.layout.sliced.setdefault(i, k)
            return SPLIT
        return STREAM if STREAM in states else WHOLE

    def _is_gradient(self, op: Op) -> bool:
        """True if a product of whole tensors makes a split matrix's shape: the head's, whose logits are gathered."""
        shapes = {self.storages[i].shape for i in self.layout.column if len(self.storages[i].shape) == 2}
        return any(self.storages[i].shape in shapes for i in op.writes)

    def _other(self, k: int, op: Op) -> State | set[int]:
        data: list[int] = []
        params: list[int] = []
        for i in op.reads:
            (params if self.storages[i].kind is Kind.PARAM else data).append(i)
        if op.name.startswith("aten.embedding."):
            return self._embedding(params, data)
        if op.name.startswith("aten.embedding_dense_backward") and self._table_of(op) in self.layout.tables:
            self.layout.whole_for.update((k, i) for i in data if self._settle(i) is STREAM)
            return SPLIT
        states = {i: self.now.get(i, WHOLE) for i in data}
        if PARTIAL in states.values():
            if op.name.startswith("aten.add") and set(states.values()) == {PARTIAL}:
                return PARTIAL
            states = {i: self._settle(i) for i in data}
        if op.phase is Phase.BACKWARD and op.name.startswith("aten.sum.") and self._of_row(op):
            self.layout.biases.update((k, i) for i, state in states.items() if state is STREAM)
        split = [i for i, state in states.items() if state is SPLIT]
        if split:
            sources = set().union(*(self.source.get(i, set()) for i in split))
            if op.phase is Phase.FORWARD and (clash := self._clash(op, states, split, params)):
                return sources or clash
            self.source.update(dict.fromkeys(op.writes, sources))
            return SPLIT
        return STREAM if params or STREAM in states.values() else WHOLE

    def _of_row(self, op: Op) -> bool:
        return op.module in {self.storages[i].module for i in self.layout.row}

    def _clash(self, op: Op, states: dict[int, State], split: Sequence[int], params: Sequence[int]) -> set[int]:
        """Split tensors that meet the stream, or are normalised along what is split."""
        sizes = {self.storages[i].nbytes for i in split}
        met = {i for i, s in states.items() if s is STREAM and self.storages[i].nbytes in sizes}
        lasts = {self.storages[i].shape[-1] for i in split if self.storages[i].shape}
        along = {
            i for i in params if "norm" in op.name and self.storages[i].shape[:1] and self.storages[i].shape[0] in lasts
        }
        whole = {i for i in along if i not in self.layout.column}
        return met | whole

    def _embedding(self, params: Sequence[int], data: Sequence[int]) -> State:
        table = next(iter(params), None)
        if table is None or not any(self.storages[i].kind is Kind.INPUT for i in data):
            return STREAM
        self.layout.column.add(table)
        self.layout.tables.add(table)
        return PARTIAL

    def _table_of(self, op: Op) -> int | None:
        return self._owners().get((op.module, "weight"))

    def _settle(self, i: int) -> State:
        """State of what an op reads; a sum is taken over the ranks right after its last term."""
        state = self.now.get(i, WHOLE)
        if state is not PARTIAL:
            return state
        self.layout.summed.setdefault(self.writer[i], []).append(i)
        self.now[i] = STREAM
        return STREAM
