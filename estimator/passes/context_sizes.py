"""Which degrees of context parallelism a step takes: sequences and heads must divide.

    all_gather, ring   seq_len % (2 cp) = 0                each rank has an early and a late part
    ulysses            seq_len % cp = 0, heads % cp = 0    of queries, and of keys and values, after tp has its part

>>> check_length(1024, 4, "ring")
>>> check_heads((32, 8), 16)
Traceback (most recent call last):
dnnmem.estimator.errors.UnsupportedError: attention has 8 heads of keys and values on a rank; 8 % cp 16 = 8, but ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.passes.draft import Life
from dnnmem.estimator.trace import Op, Phase, Trace

_SMALL = 64
"""Bytes up to which something is a random state."""
_OPERANDS = 3
"""Queries, keys and values."""
_BY_HEAD = 4
"""Dimensions: samples, heads, positions, width."""
_JOINED = ("aten.cat.", "aten.new_empty.")
"""What makes a tensor whose rows are in the order of its shape, whatever those lie like that it is made of."""


def check_shares(trace: Trace, cp: int, method: str, tp: int = 1) -> int:
    """Length of the sequences of a step that `cp` ranks can share, of which `tp` have split nothing yet.

    Raises `UnsupportedError` for a step without sequences or fused attention, and for sizes that do not divide.
    """
    length, what = trace.batch.get("seq_len"), trace.origin.target or "this step"
    if not isinstance(length, int):
        raise UnsupportedError(f"cp is {cp}, but {what} has no sequences to share", hint="--set mesh.cp=1")
    check_length(length, cp, method)
    found = [op for op in trace.ops if op.phase is Phase.FORWARD and is_attention(op.name) and op.writes]
    if not found:
        raise UnsupportedError(
            f"cp is {cp}, but {what} has no fused attention, the only one that ranks can share",
            hint="write attention with scaled_dot_product_attention, or --set mesh.cp=1",
        )
    if method == "ulysses":
        grads = gradients_of(trace)
        for op in found:
            query, key = heads_of(trace, op, grads.get(op.writes[0], ()))
            check_heads((query // tp, key // tp), cp, ".".join(op.module))
    return length


def heads_of(trace: Trace, op: Op, grads: Sequence[int] = ()) -> tuple[int, int]:
    """Heads of the queries of a fused attention's op, and of its keys and values; 0 where its shape does not tell.

    Args: `grads` are the gradients of q, k and v.
    """
    out = trace.storages[op.writes[0]]
    if len(out.shape) != 4:
        return 0, 0
    query, key = out.nbytes, 0
    if grads:
        query, key = (trace.storages[i].nbytes for i in grads[:2])
    else:
        key = key_bytes([trace.storages[i].nbytes for i in dict.fromkeys(op.reads[:3])], query)
    return out.shape[1], out.shape[1] * key // max(1, query)


def gradients_of(trace: Trace) -> dict[int, tuple[int, ...]]:
    """By what an attention made, the gradients of its q, k and v, where each has a storage."""
    outs = {op.writes[0] for op in trace.ops if op.phase is Phase.FORWARD and is_attention(op.name) and op.writes}
    found: dict[int, tuple[int, ...]] = {}
    for op in trace.ops:
        if op.phase is Phase.BACKWARD and is_attention(op.name) and "_backward" in op.name:
            made = tuple(i for i in dict.fromkeys(op.writes) if trace.storages[i].nbytes > _SMALL)
            found |= {i: made[:_OPERANDS] for i in op.reads if i in outs and len(made) >= _OPERANDS}
    return found


def lies_by_head(trace: Trace, known: Mapping[int, Life], i: int) -> bool:
    """Whether what attention is given lies as (B, H, T, D), since it was joined from parts so, and not transposed."""
    made = known[i].made
    return made >= 0 and len(trace.storages[i].shape) == _BY_HEAD and trace.ops[made].name.startswith(_JOINED)


def key_bytes(distinct: list[int], query: int) -> int:
    """Bytes of k, or of v: of what an attention reads besides a q of `query` bytes, three storages or parts of one."""
    return (distinct[0] - query) // 2 if len(distinct) == 1 else distinct[1] // (4 - len(distinct))


def check_length(length: int, cp: int, method: str) -> None:
    """Raise `UnsupportedError` unless each of `cp` ranks gets as many positions of a sequence."""
    pieces, name = (cp, "cp") if method == "ulysses" else (2 * cp, "(2 * cp)")
    if length % pieces:
        why = "" if method == "ulysses" else ", an early and a late part for each rank"
        raise UnsupportedError(
            f"sequences of {length} under cp {cp}, {method}: {length} % {name} = {length % pieces}, but it must be 0"
            f"{why}",
            hint="choose another --seq, or a cp that divides it",
        )


def check_heads(heads: tuple[int, int], cp: int, where: str = "attention") -> None:
    """Raise `UnsupportedError` unless `cp` divides the heads of queries, and those of keys, that ulysses deals out."""
    for count, what in zip(heads, ("queries", "keys and values"), strict=True):
        if count % cp:
            raise UnsupportedError(
                f"{where} has {count} heads of {what} on a rank; {count} % cp {cp} = {count % cp}, but ulysses needs 0",
                hint="--set context.method=ring, or a smaller cp",
            )
