"""The ops of a communication hook on one bucket, as `profilers/apply/gradient_hooks.py` has them.

What ranks send is read by no op here: so the copy out of the bucket alone waits for it (see `passes/gradients.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import TYPE_CHECKING

from dnnmem.estimator.gradient_sizes import GROUP, bits_of, narrow_columns, part_of
from dnnmem.estimator.passes.draft import Draft
from dnnmem.estimator.passes.optimizer_update import Update
from dnnmem.estimator.passes.update import element_bytes
from dnnmem.estimator.trace import Kind, Lane, Op, Storage

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Gradients

_SIZES = {"uint8": 1, "int32": 4, "int64": 8}
_SELECTIONS = 5
"""Times that the search for the largest goes over all: a digit of 8 bits at a time, then to fetch them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Gradients that are sent together."""

    flat: int
    """Where they lie, one after the other."""
    gradients: tuple[int, ...]
    """Where they come from."""
    elements: int
    """How many numbers there are."""
    dtype: str
    """Their type."""
    ranks: int
    """Who they are averaged over."""
    axis: str
    """Of the mesh."""


def sent(draft: Draft, wanted: Gradients, bucket: Bucket) -> list[Op]:
    """What is done in the place of a sum; what stays between steps is entered in `draft`."""
    hook = _Hook(draft, wanted, bucket)
    if wanted.compression in ("float16", "bfloat16"):
        hook.halves()
    elif wanted.compression in ("topk", "dgc"):
        hook.largest()
    elif wanted.compression == "powersgd":
        hook.products()
    else:
        hook.codes()
    return hook.update.ops


class _Hook:
    """One bucket on its way."""

    def __init__(self, draft: Draft, wanted: Gradients, bucket: Bucket) -> None:
        self.draft, self.wanted, self.bucket = draft, wanted, bucket
        self.update = Update(draft)

    def halves(self) -> None:
        """Rounded to 16 bits; what has the type already is sent as it lies."""
        b, up = self.bucket, self.update
        if b.dtype == self.wanted.compression:
            up.op("aten.div_.Tensor", (b.flat,), (b.flat,), moved=2 * b.elements * element_bytes(b.dtype))
            self._send("all_reduce", (b.flat,))
            return
        half = up.make("aten._to_copy.default", (b.flat,), [self._like(b.elements, self.wanted.compression)])
        up.op("aten.div_.Tensor", (*half, *half), half, moved=2 * self._bytes(half))
        self._send("all_reduce", half)
        up.op("aten.copy_.default", half, moved=3 * self._bytes(half))
        up.free(half)

    def largest(self) -> None:
        """The largest of what waits, from each rank to all."""
        b, up, n = self.bucket, self.update, self.bucket.elements
        waiting = self._keep("waiting", n)
        memories = [waiting]
        added = b.flat
        if self.wanted.compression == "dgc":
            added = self._keep("velocity", n)
            memories.append(added)
            up.op("aten.mul_.Tensor", (added,), (added,))
            up.op("aten.add_.Tensor", (added, b.flat), (added,))
        up.op("aten.add_.Tensor", (waiting, added), (waiting,))
        count = ceil(self.wanted.density * n)
        lengths = up.make("aten.abs.default", (waiting,), [self._like(n)])
        outputs = [self._like(count), self._like(count, "int64")]
        values, places = up.make("aten.topk.default", lengths, outputs, moved=_SELECTIONS * self._bytes(lengths))
        up.free((*lengths, values))
        item = element_bytes(b.dtype)
        own = up.make("aten.index.Tensor", (waiting, places), [self._like(count)], moved=count * (8 + 2 * item))
        short = up.make("aten._to_copy.default", (places,), [self._like(count, "int32")])
        for memory in memories:
            up.op("aten.index_fill_.int_Scalar", (memory, places), (memory,), moved=count * (8 + item))
        up.free((places,))
        got = [*self._gather(own), *self._gather(short)]
        up.op("aten.zero_.default", (), moved=n * item)
        for _ in range(b.ranks):
            up.op("aten.index_add_.default", got, moved=count * (4 + 3 * item))
        up.free((*got, *own, *short))

    def codes(self) -> None:
        """A part to each rank, which averages it; then the parts to all."""
        b, up, n = self.bucket, self.update, self.bucket.elements
        part = part_of(self.wanted, n, b.ranks)
        keeps = self.wanted.compression in ("signsgd", "onebit")
        if keeps:
            whole: tuple[int, ...] = (self._keep("waiting", b.ranks * part),)
            mean: tuple[int, ...] = (self._keep("waiting part", part),)
        else:
            whole = up.make("aten.zeros.default", (), [self._like(b.ranks * part)])
        if self.wanted.compression == "onebit":
            up.op("aten._foreach_lerp_.Scalar", (b.flat, b.flat), (b.flat,))
        up.op("aten.add_.Tensor", (*whole, b.flat), whole)
        sent = self._encoded(whole, b.ranks, keeps=keeps)
        got = [self._exchange(some) for some in sent]
        up.free(sent)
        found = self._decoded(b.ranks, part)
        new = up.make("aten.mean.dim", found, [self._like(part)])
        up.free((*found, *got))
        if keeps:
            up.op("aten.add_.Tensor", (*mean, *new), mean)
            up.free(new)
        else:
            mean = new
        sent = self._encoded(mean, 1, keeps=keeps)
        if not keeps:
            up.free(mean)
        gathered = [i for some in sent for i in self._gather((some,))]
        found = self._decoded(b.ranks, part)
        up.op("aten.copy_.default", found, moved=2 * n * element_bytes(b.dtype))
        up.free((*found, *gathered, *sent))
        if not keeps:
            up.free(whole)

    def products(self) -> None:
        """Narrow matrices, by PowerSGD. Products on another stream have a workspace of their own."""
        b, up = self.bucket, self.update
        shapes = [self._shape(i) for i in b.gradients]
        narrow = [(n, m, r) for n, m in shapes if (r := narrow_columns((n, m), self.wanted.rank))]
        whole = sum(n * m for n, m in shapes if not narrow_columns((n, m), self.wanted.rank))
        waiting = self._keep("waiting", b.elements)
        p, q = self._keep("p", sum(n * r for n, _, r in narrow)), self._keep("q", sum(m * r for _, m, r in narrow))
        up.op("aten.add_.Tensor", (waiting, b.flat), (waiting,))
        up.op("aten.copy_.default", (waiting, b.flat), (b.flat,))
        for n, m, r in narrow:
            self._make_orthogonal(q, m, r)
            self._product(p, n, m, r)
        if whole:
            flat = up.make("aten.cat.default", (), [self._like(whole)], moved=2 * whole * element_bytes(b.dtype))
            up.op("aten.div_.Tensor", flat, flat)
            self._send("all_reduce", flat)
            for n, m in shapes:
                if not narrow_columns((n, m), self.wanted.rank):
                    up.op("aten.copy_.default", (), moved=2 * n * m * element_bytes(b.dtype))
            up.free(flat)
        if narrow:
            self._send("all_reduce", (p,))
            for n, m, r in narrow:
                self._make_orthogonal(p, n, r)
                self._product(q, m, n, r)
            up.op("aten.div_.Tensor", (q,), (q,))
            self._send("all_reduce", (q,))
            for n, m, r in narrow:
                self._product(p, n, r, m)
        up.op("aten.sub_.Tensor", (waiting,), (waiting,), moved=3 * b.elements * element_bytes(b.dtype))

    def _shape(self, gradient: int) -> tuple[int, int]:
        shape = self.draft.storages[gradient].shape
        return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))

    def _make_orthogonal(self, matrix: int, rows: int, columns: int) -> None:
        """Columns one after the other: length, division, product with those behind it, which are lowered by that."""
        up, item = self.update, element_bytes(self.bucket.dtype)
        for left in range(columns - 1, -1, -1):
            up.op("aten.linalg_vector_norm.default", (matrix,), moved=rows * item)
            up.op("aten.div_.Tensor", (matrix,), (matrix,), moved=2 * rows * item)
            if left:
                up.op("aten.mv.default", (matrix,), moved=rows * (left + 1) * item, flops=2 * rows * left)
                up.op("aten.addr_.default", (matrix,), (matrix,), moved=2 * rows * left * item)

    def _product(self, narrow: int, rows: int, between: int, columns: int) -> None:
        """A product of which one side is narrow."""
        numbers = rows * between + between * columns + rows * columns
        self.update.op(
            "aten.mm.default", (narrow,), moved=numbers * element_bytes(self.bucket.dtype),
            flops=2 * rows * between * columns,
        )  # fmt: skip

    def _encoded(self, rows: Sequence[int], count: int, *, keeps: bool) -> tuple[int, ...]:
        """Codes and scales of a matrix of so many rows; what they miss stays, if it `keeps`."""
        up, n = self.update, self._numbers(rows)
        bits = bits_of(self.wanted)
        scales = n // GROUP if self.wanted.compression == "qsgd" else count
        scale = up.make("aten.linalg_vector_norm.default", rows, [self._like(scales)])
        if keeps:
            up.op("aten.div_.Tensor", scale, scale)
            codes = up.make("aten.ge.Scalar", rows, [self._like(n, "uint8")])
        else:
            up.op("aten.clamp_.default", scale, scale)
            noise = up.make("aten.rand.generator", (), [self._like(n)])
            up.op("aten.addcdiv_.default", (*noise, *rows), noise)
            up.op("aten.add_.Tensor", (*noise, *noise), noise)
            up.op("aten.clamp_.default", (*noise, *noise), noise)
            codes = up.make("aten._to_copy.default", noise, [self._like(n, "uint8")])
            up.free(noise)
        if bits < 8:
            parts = 8 // bits
            packed = up.make("aten.clone.default", (), [self._like(n // parts, "uint8")], moved=2 * n // parts)
            for _ in range(1, parts):
                up.op("aten.add_.Tensor", packed, packed, moved=3 * n // parts)
            up.free(codes)
            codes = packed
        if keeps:
            found = self._decoded(count, n // count)
            up.op("aten.sub_.Tensor", (*rows, *found), rows)
            up.free(found)
        return (*codes, *scale)

    def _decoded(self, rows: int, columns: int) -> tuple[int, ...]:
        """A matrix made of codes and scales."""
        up, n = self.update, rows * columns
        parts, item = 8 // bits_of(self.wanted), element_bytes(self.bucket.dtype)
        out = up.make("aten.empty.memory_format", (), [self._like(n)], moved=0)
        plane = n // parts
        for _ in range(parts):
            if parts > 1:
                shifted = up.make("aten.bitwise_right_shift.Tensor_Scalar", (), [self._like(plane, "uint8")])
                masked = up.make("aten.bitwise_and.Scalar", shifted, [self._like(plane, "uint8")])
                up.free(shifted)
            up.op("aten.copy_.default", (), moved=plane * (1 + item))
            if parts > 1:
                up.free(masked)
        up.op("aten.sub_.Scalar", (*out, *out), out, moved=2 * n * item)
        up.op("aten.mul_.Tensor", (*out, *out), out, moved=2 * n * item)
        return out

    def _exchange(self, some: int) -> int:
        """Row i of it to rank i; what came."""
        [found] = self._empty(self.draft.storages[some])
        self._send("all_to_all", (some,), (found,))
        return found

    def _gather(self, some: Sequence[int]) -> tuple[int, ...]:
        """Those of all ranks."""
        storage = self.draft.storages[some[0]]
        found = self._empty(self._like(self._numbers(some) * self.bucket.ranks, storage.dtype))
        self._send("all_gather", some, found)
        return found

    def _empty(self, like: Storage) -> tuple[int, ...]:
        return self.update.make("aten.empty.memory_format", (), [like], moved=0)

    def _send(self, kind: str, ids: Sequence[int], into: Sequence[int] = ()) -> None:
        """A collective, which the copy out of the bucket waits for."""
        nbytes = self._bytes(into or ids)
        self.update.ops.append(
            Op(
                name=f"dnnmem.{kind}.{self.bucket.axis}", lane=Lane.COMM, moved_bytes=nbytes, reads=tuple(ids),
                writes=(self.bucket.flat,),
            )
        )  # fmt: skip

    def _keep(self, name: str, elements: int) -> int:
        """A memory that stays between steps."""
        kept = self.draft.add(replace(self._like(elements), kind=Kind.COMM, name=name))
        self.draft.pinned.add(kept)
        return kept

    def _like(self, elements: int, dtype: str | None = None) -> Storage:
        kind = dtype or self.bucket.dtype
        size = _SIZES.get(kind) or element_bytes(kind)
        return Storage(id=0, nbytes=elements * size, kind=Kind.TEMP, shape=(elements,), dtype=kind)

    def _numbers(self, ids: Sequence[int]) -> int:
        return prod(self.draft.storages[ids[0]].shape)

    def _bytes(self, ids: Sequence[int]) -> int:
        return sum(self.draft.storages[i].nbytes for i in ids)
