"""Join networks: branches that run one after the other, know nothing of each other, and meet before the loss.

    left    0 1 2 3 .............. join  loss        two lists of blocks, or one that is called twice (siamese)
    right           0 1 2 3 4 5 ... /                backward: join', right' from its end, then left'

A branch is one list of blocks or several that follow each other. What reads two of them belongs to neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dnnmem.estimator.block_calls import calls_of, owners_of
from dnnmem.estimator.block_list import block_lists, blocks_of_ops
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.trace import Module, Phase, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A step whose branches are lists of blocks of their own."""

    trace: Trace
    """The same but for the names of modules in second, third, ... calls."""
    branches: tuple[tuple[int, ...], ...]
    """Blocks of each, as `trace` counts them, in the order in which branches run; two or more."""
    twins: tuple[tuple[int, ...], ...]
    """Of each block of the model what it is in `trace`: one number for each call."""


def join_of(trace: Trace) -> Join:
    """`trace` as a join network. Raises `UnsupportedError` for any other."""
    apart, twins = _apart(trace)
    branches = _branches(apart)
    if len(branches) < 2:
        raise UnsupportedError(
            f"{trace.origin.target or 'the step'} is no join network: it has no two lists of blocks that run beside "
            "each other and meet later"
        )
    return Join(trace=apart, branches=tuple(map(tuple, branches)), twins=twins)


def _apart(trace: Trace) -> tuple[Trace, tuple[tuple[int, ...], ...]]:
    """Each call of a list as a list of its own, and of each block of the model the numbers that it has there."""
    owners, count = owners_of(trace)
    calls = calls_of(trace.ops, owners)
    if not any(calls):
        return trace, tuple((block,) for block in range(count))
    ops = tuple(
        replace(op, module=(_root(call), *op.module)) if call else op for op, call in zip(trace.ops, calls, strict=True)
    )
    inside = {(call, op.module) for op, call in zip(trace.ops, calls, strict=True) if call}
    modules = list(trace.modules)
    twins: list[list[int]] = [[block] for block in range(count)]
    for call in range(1, max(calls) + 1):
        first, found = 0, count
        for some in block_lists(trace):
            if any(at == call and path[: len(some.root)] == some.root for at, path in inside):
                below = [m for m in trace.modules if m.path[: len(some.root)] == some.root]
                modules += [Module(path=(_root(call), *m.path), type=m.type, source=m.source) for m in below]
                for n in range(some.count):
                    twins[first + n].append(found + n)
                found += some.count
            first += some.count
        count = found
    return replace(trace, ops=ops, modules=tuple(modules)), tuple(map(tuple, twins))


def _root(call: int) -> str:
    return f"<call {call}>"


def _branches(trace: Trace) -> list[list[int]]:
    """Blocks of each branch, in the order in which they run first."""
    lists = block_lists(trace)
    starts, owner = [0], [-1] * len(trace.ops)
    for n, some in enumerate(lists):
        starts.append(starts[-1] + some.count)
        for k, block in enumerate(blocks_of_ops(trace.ops, some)):
            owner[k] = n if block is not None else owner[k]
    made: dict[int, int] = {}  # storage -> lists that it comes of, as bits
    reads = [0] * len(lists)
    order: dict[int, None] = {}
    met = 0
    for op, n in zip(trace.ops, owner, strict=True):
        if op.phase is not Phase.FORWARD:
            continue
        bits = 0
        for i in op.reads:
            bits |= made.get(i, 0)
        if n >= 0:
            order[n] = None
            reads[n] |= bits & ~(1 << n)
            bits |= 1 << n
        else:
            met |= bits if bits & (bits - 1) else 0
        made.update(dict.fromkeys(op.writes, bits))
    return _grouped(list(order), reads, starts, met)


def _grouped(order: Sequence[int], reads: Sequence[int], starts: Sequence[int], met: int) -> list[list[int]]:
    """Lists that read of no other begin branches; one that reads of a single branch goes on with it."""
    groups: list[tuple[int, list[int]]] = []  # lists as bits, blocks
    for n in order:
        blocks, mine = range(starts[n], starts[n + 1]), [g for g, (bits, _) in enumerate(groups) if bits & reads[n]]
        if not mine:
            groups.append((1 << n, [*blocks]))
        elif len(mine) == 1:
            bits, before = groups[mine[0]]
            groups[mine[0]] = bits | 1 << n, [*before, *blocks]
    return [blocks for bits, blocks in groups if bits & met or len(groups) == 1]
