"""What the optimizer's update costs when what it works on changes size: parts of states, other element types.

An update reads and writes lists (`aten._foreach_*`), one entry a parameter; what it makes in between is as large as
what it reads in the same place of the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import prod

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.passes.draft import Draft, Life
from dnnmem.estimator.trace import Kind, Part, Phase, Storage
from dnnmem.estimator.trace_copy import op_like, storage_like

SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8_e4m3fn": 1}
"""Bytes of an element."""


def element_bytes(dtype: str) -> int:
    """Bytes of an element; raises `UsageError` for a type without a size here."""
    if dtype not in SIZES:
        raise UsageError(f"{dtype!r} has no known element size; known: {', '.join(SIZES)}")
    return SIZES[dtype]


def in_type(storage: Storage, dtype: str | None) -> Storage:
    """`storage` with its elements in another floating type; None and whole numbers stay."""
    if dtype is None or dtype == storage.dtype or storage.dtype not in SIZES or storage.dtype == "int8":
        return storage
    return storage_like(storage, dtype=dtype, nbytes=storage.nbytes * SIZES[dtype] // SIZES[storage.dtype])


def split(storage: Storage) -> list[Storage]:
    """A storage for each tensor that lies in it; itself where that is one."""
    if not storage.parts:
        return [storage]
    size = element_bytes(storage.dtype)
    return [
        storage_like(storage, nbytes=prod(t.shape) * size, shape=t.shape, module=t.module, name=t.name, parts=())
        for t in storage.parts
    ]


def gradients(storages: Mapping[int, Storage], *, shared: bool = False) -> dict[int, list[int]]:
    """Parameter -> its gradients (two where a loop makes a new one before it drops the old one).

    `shared`: a storage with gradients of several parameters is each one's; else the first one's.
    """
    params: dict[tuple[tuple[str, ...], str], int] = {}
    grads = []
    for i, s in storages.items():
        if s.kind is Kind.PARAM:
            params.update(((t.module, t.name), i) for t in s.tensors)
        elif s.kind is Kind.GRAD:
            grads.append((i, s))
    found: dict[int, dict[int, None]] = {}
    for i, s in grads:
        for tensor in s.tensors[: None if shared else 1]:
            owner = params.get(trained(tensor))
            if owner is not None:
                found.setdefault(owner, {})[i] = None
    return {owner: list(grads) for owner, grads in found.items()}


def trained(gradient: Part) -> tuple[tuple[str, ...], str]:
    """The parameter that a tensor is the gradient of: its module and its name there."""
    return gradient.module, gradient.name.split(".")[0]


def states(storages: Mapping[int, Storage]) -> list[int]:
    """The optimizer's storages of one entry an element, not its counters."""
    return [i for i, s in storages.items() if s.kind is Kind.OPTIMIZER and s.nbytes > 8]


def scale_update(draft: Draft, known: Mapping[int, Life], shares: Mapping[int, Fraction]) -> None:
    """Make the update work on storages of other sizes, as shares of the recorded ones; what it makes follows them.

    Sizes of storages in `shares` that exist outside of the update are the caller's to change.
    """
    parts = {i: (share.numerator, share.denominator) for i, share in shares.items()}
    sizes: dict[int, int] = {}
    storages = draft.trace.storages
    for k, op in enumerate(draft.trace.ops):
        if op.phase is not Phase.STEP:
            continue
        made = [i for i in op.writes if i in known and known[i].made == k and i not in parts]
        if made and len(op.reads) % len(made) == 0:
            for w, r in zip(made, op.reads, strict=False):
                if r in parts:
                    n, d = parts[w] = parts[r]
                    sizes[w] = -(-storages[w].nbytes * n // d)
        old = new = 0
        for i in (*op.reads, *op.writes):
            nbytes = storages[i].nbytes
            old += nbytes
            if i in parts:
                n, d = parts[i]
                nbytes = -(-nbytes * n // d)
            new += nbytes
        if old and new != old:
            moved, flops = op.moved_bytes * new // old, op.flops * new // old
            draft.ops[k] = op_like(draft.ops[k], moved_bytes=moved, flops=flops)
    draft.resize(sizes)
