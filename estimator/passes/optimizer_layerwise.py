"""LAMB's and LARS's updates, as `profilers/optimizers/layerwise.py` makes them: an update as large as the parameters.

matrices    moments | u = ...    |w|  |u|  their quotients    u *= quotients    w -= u
vectors     moments | u = ...                                                   w -= u
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from dnnmem.estimator.passes.optimizer_rule import Rule, columns, lists_of, moments, momentum_state, states_of
from dnnmem.estimator.passes.optimizer_update import Entry, Update, shaped

_CHUNK = 65536
"""Elements of which a list's norm makes one partial sum: `kChunkSize` of torch's cuda/MultiTensorApply.cuh."""


def _lamb(update: Update, entries: Sequence[Entry]) -> None:
    for some in _lists(update, entries):
        p, g = columns(some)
        m, v = states_of(some, "exp_avg"), states_of(some, "exp_avg_sq")
        update.op("aten._foreach_lerp_.Scalar", (*m, *g), m)
        update.op("aten._foreach_mul_.Scalar", v, v)
        update.op("aten._foreach_addcmul_.Scalar", (*v, *g), v)
        u = update.make("aten._foreach_sqrt.default", v, [update.storage(i) for i in v])
        update.op("aten._foreach_div_.ScalarList", u, u)
        update.op("aten._foreach_add_.Scalar", u, u)
        update.op("aten._foreach_reciprocal_.default", u, u)
        update.op("aten._foreach_mul_.List", (*u, *m), u)
        update.op("aten._foreach_div_.ScalarList", u, u)
        update.op("aten._foreach_add_.List", (*u, *p), u)
        lengths = tuple[int, ...]()
        if _is_matrix(update, some[0]):
            lengths = _lengths(update, p)
            _scale(update, u, lengths, _lengths(update, u), kept=False)
        update.op("aten._foreach_add_.List", (*p, *u), p)
        update.free(u)
        update.free(lengths)


def _lars(update: Update, entries: Sequence[Entry]) -> None:
    for some in _lists(update, entries):
        (p, g), b = columns(some), states_of(some, "momentum_buffer")
        u = update.make("aten._foreach_add.List", (*g, *p), [update.storage(i) for i in p])
        lengths = others = tuple[int, ...]()
        if _is_matrix(update, some[0]):
            lengths, others = _lengths(update, p), _lengths(update, g)
            update.op("aten.add_.Tensor", (*others, *lengths), others)
            _scale(update, u, lengths, others, kept=True)
        update.op("aten._foreach_mul_.Scalar", b, b)
        update.op("aten._foreach_add_.List", (*b, *u), b)
        update.op("aten._foreach_add_.List", (*p, *b), p)
        update.free(u)
        update.free(lengths)
        update.free(others)


def _lists(update: Update, entries: Sequence[Entry]) -> list[list[Entry]]:
    """Matrices and vectors apart, in the order of their first."""
    return [
        some
        for same in _by_rank(update, entries)
        for some in lists_of(update, same)
    ]  # fmt: skip


def _by_rank(update: Update, entries: Sequence[Entry]) -> list[list[Entry]]:
    found: dict[bool, list[Entry]] = {}
    for entry in entries:
        found.setdefault(_is_matrix(update, entry), []).append(entry)
    return list(found.values())


def _is_matrix(update: Update, entry: Entry) -> bool:
    return len(update.storage(entry.param).shape) > 1


def _lengths(update: Update, tensors: Sequence[int]) -> tuple[int, ...]:
    """Norms of a list, in one tensor."""
    storages = [update.storage(i) for i in tensors]
    chunks = max(-(-prod(s.shape) // _CHUNK) for s in storages)
    each = update.make(
        "aten._foreach_norm.Scalar", tensors, [shaped(s, ()) for s in storages], first=(4 * len(storages) * chunks,)
    )
    made = update.make("aten.stack.default", each, [shaped(storages[0], (len(each),))])
    update.free(each)
    return made


def _scale(update: Update, u: Sequence[int], lengths: tuple[int, ...], others: tuple[int, ...], *, kept: bool) -> None:
    """Multiply by the quotients of two lengths, 1 where one of them is 0."""
    like = update.storage(lengths[0])
    ratios = update.make("aten.div.Tensor", (*lengths, *others), [like])
    update.op("aten.mul_.Tensor", ratios, ratios)
    zero = update.make("aten.mul.Tensor", (*lengths, *others), [like])
    update.op("aten.eq_.Scalar", zero, zero)
    mask = update.make("aten._to_copy.default", zero, [shaped(like, like.shape, "bool")])
    update.free(zero)
    update.op("aten.masked_fill_.Scalar", (*ratios, *mask), ratios)
    update.free(mask)
    update.op("aten._foreach_mul_.List", (*u, *ratios), u)
    if not kept:
        update.free(others)
    update.free(ratios)


LAMB = Rule(kernels={"foreach": _lamb}, states={"foreach": moments}, needs="lengths")
LARS = Rule(kernels={"foreach": _lars}, states={"foreach": momentum_state}, needs="lengths")
