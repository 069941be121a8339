"""Pieces of attention in the place of one op: what they make, free and send, in storages of the trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.passes.context_tape import Piece, Tape
from dnnmem.estimator.passes.draft import Draft, Life
from dnnmem.estimator.trace import Event, Kind, Lane, Op
from dnnmem.estimator.trace_copy import op_like, storage_like

SMALL = 64
"""Bytes up to which something is a random state."""


def made_by(op: Op) -> list[Event]:
    """What the kernel allocates, and frees of that: the frees of what others made come after it."""
    made = {e.storage for e in op.events if e.nbytes > 0}
    return [e for e in op.events if e.nbytes > 0 or (e.storage < 0 and e.storage in made)]


def gradients(draft: Draft, k: int) -> list[int]:
    """Of q, k and v. Raises `UnsupportedError` where they are not three storages."""
    op = draft.ops[k]
    made = [i for i in dict.fromkeys(op.writes) if draft.storages[i].nbytes > SMALL]
    if len(made) < 3:
        raise UnsupportedError(
            f"{op.name} of {'.'.join(op.module)} makes {len(made)} gradients, not one each of queries, keys and values",
            hint="--set mesh.cp=1",
        )
    return made[:3]


def let_go(draft: Draft, known: Mapping[int, Life], k: int, ids: Sequence[int]) -> None:
    """What of `ids` only attention kept is freed as soon as the program lets go of it."""
    ops = draft.trace.ops
    for i in dict.fromkeys(ids):
        later = [at for at in known[i].uses if at > k]
        if i in draft.pinned or not later or any(not is_attention(ops[at].name) for at in later):
            continue
        let = next((at for at in range(k, later[0]) if i in ops[at].releases), k)
        draft.unfree(known[i].freed, i)
        draft.free(let, i)


def insert(
    draft: Draft, k: int, tape: Tape, named: Mapping[int, int], *, saved: Sequence[int] = (), frees: Iterable[int] = ()
) -> dict[int, int]:
    """The pieces in the place of op `k`; by a tape's storage the trace's. `frees` go after the last attention."""
    op = draft.ops[k]
    new = _storages(draft, op, tape, named, saved)
    count = sum(piece.kind == "attention" for piece in tape.pieces)
    made = {e.storage for e in op.events if e.nbytes > 0}
    rest = [e for e in op.events if e.storage not in made]
    rest += [Event(-draft.storages[i].nbytes, 0, i) for i in frees]
    last = max(n for n, piece in enumerate(tape.pieces) if piece.kind == "attention") if frees else len(tape.pieces) - 1
    found = []
    for n, piece in enumerate(tape.pieces):
        events = [Event(e.nbytes, 0, new.get(e.storage, e.storage)) for e in piece.events]
        events += rest if n == last else []
        found.append(_op_of(op, piece, new, tuple(events), count, reads=op.reads if n <= last else ()))
    draft.before.setdefault(k, []).extend(found[:-1])
    draft.ops[k] = op_like(found[-1], releases=op.releases)
    return new


def _storages(draft: Draft, op: Op, tape: Tape, named: Mapping[int, int], saved: Sequence[int]) -> dict[int, int]:
    """What lives longer than its piece is a storage of the trace."""
    new = {x: i for i, x in named.items()}
    for piece in tape.pieces:
        gone = {e.storage for e in piece.events if e.nbytes < 0}
        for nbytes, _, x in piece.events:
            if nbytes <= 0 or (x in gone and x != piece.gives):
                continue
            if x in new:
                draft.storages[new[x]] = storage_like(draft.storages[new[x]], nbytes=nbytes)
                continue
            kind = Kind.ACTIVATION if x in saved else Kind.COMM if x == piece.gives else Kind.TEMP
            like = draft.storages[op.writes[0]]
            new[x] = draft.add(storage_like(like, nbytes=nbytes, kind=kind, name="", saved=x in saved))
    return new


def _op_of(
    op: Op, piece: Piece, new: Mapping[int, int], events: tuple[Event, ...], count: int, *, reads: tuple[int, ...]
) -> Op:
    """One piece as an op of its own."""
    writes = tuple(dict.fromkeys(e.storage for e in events if e.nbytes > 0 and e.storage >= 0))
    takes = (new[piece.takes],) if piece.takes in new else ()
    if piece.kind == "attention":  # the kernel's own result comes first: it is timed by that, not by a logsumexp
        writes = tuple(dict.fromkeys((*(i for i in op.writes[:1] if i in writes), *writes)))
        return op_like(
            op, reads=tuple(dict.fromkeys((*reads, *takes))), writes=writes, events=events, flops=op.flops // count,
            masked_flops=op.masked_flops // count, moved_bytes=op.moved_bytes // count, releases=(),
        )  # fmt: skip
    copies = piece.kind == "copy"
    return Op(
        name=f"dnnmem.{'copy_in' if copies else piece.kind}.cp", module=op.module, phase=op.phase,
        lane=Lane.COMPUTE if copies else Lane.COMM, reads=takes or (reads if copies else ()), writes=writes,
        events=events, moved_bytes=piece.nbytes,
    )  # fmt: skip
