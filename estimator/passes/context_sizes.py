"""Which degrees of context parallelism a model takes: sequences and heads must divide.

    all_gather, ring   seq_len % (2 cp) = 0                each rank has an early and a late part
    ulysses            seq_len % cp = 0, heads % cp = 0    of queries, and of keys and values

>>> check_length(1024, 4, "ring")
>>> fits(seq_len=1024, heads=(32, 8), cp=16, tp=1, method="ulysses")
False
>>> fits(seq_len=1024, heads=(32, 8), cp=8, tp=1, method="ulysses")
True
"""

from __future__ import annotations

from collections.abc import Iterable

from dnnmem.estimator.errors import UnsupportedError


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


def check_heads(heads: Iterable[int], cp: int, where: str = "attention") -> None:
    """Raise `UnsupportedError` unless `cp` divides the numbers of heads that ulysses deals out."""
    for count in heads:
        if count % cp:
            raise UnsupportedError(
                f"{where} has {count} heads (of queries, or of keys and values) on a rank; {count} % cp {cp} = "
                f"{count % cp}, but ulysses needs 0",
                hint="--set context.method=ring, or a smaller cp",
            )


def fits(*, seq_len: int, heads: Iterable[int], cp: int, tp: int, method: str) -> bool:
    """Whether `cp` ranks can share sequences of `seq_len`, with these `heads` (of all `tp` ranks) in attention."""
    try:
        check_length(seq_len, cp, method)
        if method == "ulysses":
            check_heads([count // tp for count in heads], cp)
    except UnsupportedError:
        return False
    return True
