"""What of a pipeline's chunk its micro-batches have apart, share, or hand on: read off its trace, for `rank_step`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from dnnmem.estimator.trace import Kind, Lane, Op, Phase, Trace

_ADD = "aten.add_.Tensor"
_OF_LISTS = ("aten._foreach_", "aten._fused_")
"""What the names of ops begin with that take lists of parameters."""


def messages_of(chunk: Trace, name: str, phases: Sequence[Phase]) -> set[int]:
    """Storages of a micro-batch that are sent, or received, in some passes."""
    return {i for op in chunk.ops if op.name == name and op.phase in phases for i in (*op.reads, *op.writes)}


def freed_late_of(chunk: Trace) -> set[int]:
    """Storages of a micro-batch that are freed in the update."""
    made = {e.storage for op in chunk.ops if op.phase is not Phase.STEP for e in op.events if e.nbytes > 0}
    freed = {e.storage for op in chunk.ops if op.phase is Phase.STEP for e in op.events if e.nbytes < 0}
    return {i for i in made & freed if i >= 0 and i not in chunk.pinned}


def by_letter(chunk: Trace) -> dict[str, list[Op]]:
    """Ops of whole passes; a forward that is run again is part of its backward, which follows at once."""
    forward = [op for op in chunk.ops if op.phase is Phase.FORWARD]
    backward = [op for op in chunk.ops if op.phase is Phase.BACKWARD]
    return {"F": forward, "B": backward}


def terms_of(chunk: Trace) -> dict[int, int]:
    """What micro-batches add to gradients, and to which."""
    adds = (op for op in chunk.ops if op.name == _ADD and op.phase is Phase.BACKWARD and len(op.reads) == 2)
    found = ((op.reads, op.writes) for op in adds if op.writes == op.reads[:1])
    return {term: grad for (grad, term), _ in found if chunk.storages[grad].kind is Kind.GRAD}


def lent_gradients(chunks: Sequence[Trace], terms: Sequence[dict[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Gradients that a second chunk makes and does not update by: it adds to those of the first one, by chunk."""
    if len(chunks) != 2 or chunks[0] is chunks[1]:
        return {}
    first, second = chunks
    used = {i for op in second.ops if op.phase is Phase.STEP for i in op.reads}
    of = {(s.module, s.name): i for i in terms[0].values() for s in [first.storages[i]]}
    named = {i: (s.module, s.name) for i in terms[1].values() if i not in used for s in [second.storages[i]]}
    return {(1, i): (0, of[owner]) for i, owner in named.items() if owner in of}


def in_turns(updates: Sequence[Sequence[Op]]) -> list[list[tuple[int, Op]]]:
    """The ops of the update of each chunk of a rank, (chunk, op): in rows, those that one optimizer makes as one.

    What chunks wait for and send before comes first. Where their ops are not alike they come chunk by chunk.
    """
    before = [[*takewhile(lambda op: op.lane is Lane.COMM, ops)] for ops in updates]
    rest = [ops[len(sent) :] for ops, sent in zip(updates, before, strict=True)]
    rows = [[(c, op)] for c, ops in enumerate(before) for op in ops]
    if any([op.name for op in ops] != [op.name for op in rest[0]] for ops in rest):
        return rows + [[(c, op)] for c, ops in enumerate(rest) for op in ops]
    for row in zip(*rest, strict=True):
        frees = all(event.nbytes < 0 for op in row for event in op.events)  # a list lets go of its last tensor first
        turns = [*enumerate(row)][:: -1 if frees else 1]
        rows += [turns] if row[0].name.startswith(_OF_LISTS) else [[turn] for turn in turns]
    return rows
