"""Which call of its block an op belongs to, where a model runs one list of blocks several times, as siamese ones do.

forward    0 1 2 (call 0)   0 1 2 (call 1)   join      backward   join   2 1 0 (call 1)   2 1 0 (call 0)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dnnmem.estimator.block_list import block_lists
from dnnmem.estimator.trace import Op, Phase, Trace


def owners_of(trace: Trace) -> tuple[list[int | None], int]:
    """The block of each op, counted over the model, and how many blocks there are."""
    found: list[int | None] = [None] * len(trace.ops)
    count = 0
    for blocks in block_lists(trace):
        for k, owner in enumerate(blocks.numbers(trace.ops)):
            if owner is not None:
                found[k] = count + owner
        count += blocks.count
    return found, count


def calls_of(ops: Sequence[Op], owners: Sequence[int | None]) -> list[int]:
    """Of each op the call of its block that it belongs to: a model with two branches may run one list of blocks twice.

    Backward passes of the calls come in reverse. 0 where the two cannot be told apart.
    """
    parts: dict[tuple[int, Phase], list[list[int]]] = defaultdict(list)
    last: tuple[int, Phase] | None = None
    for k, owner in enumerate(owners):
        if owner is None or ops[k].phase is Phase.STEP:
            continue
        if last != (owner, ops[k].phase):
            last = owner, ops[k].phase
            parts[last].append([])
        parts[last][-1].append(k)
    found = [0] * len(ops)
    for (owner, phase), forward in list(parts.items()):
        backward = parts.get((owner, Phase.BACKWARD), [])
        if phase is Phase.FORWARD and len(forward) == len(backward):
            for call, ks in enumerate(zip(forward, reversed(backward), strict=True)):
                for k in (*ks[0], *ks[1]):
                    found[k] = call
    return found
