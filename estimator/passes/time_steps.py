"""A recurrent network's step as a list of blocks: which ops are which time step, told by how they repeat.

    forward    emb | cell cell cell cell | head      the longest stretch that repeats; cut where least is alive
    backward         cell' cell' cell' cell'         in reverse; a step's ops read what it made, or the one before

`calls_of_cell` tells the same of one module that is called for each step, by its own ops: its calls can be computed
again in a model as it is.

The trace that is returned is the same but for the names of modules: `<steps>.0`, `<steps>.1`, ... as if a list of
blocks had run. What plans for blocks plans for time steps then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np

from dnnmem.estimator.block_calls import calls_of, owners_of
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.autocast_links import is_backward_of
from dnnmem.estimator.passes.autocast_lists import base
from dnnmem.estimator.passes.draft import lives
from dnnmem.estimator.trace import Kind, Module, Op, Phase, Trace

ROOT = "<steps>"
"""Module that holds the steps."""
_LEAST = 4
"""Repetitions that make an unrolled network."""
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


def as_steps(trace: Trace) -> Trace:
    """`trace` with its time steps as blocks. Raises `UnsupportedError` unless half of its forward pass repeats."""
    owners, cell = time_steps(trace), cell_of(trace)
    owners = calls_of_cell(trace, cell) if cell else owners
    ops = tuple(
        op if t is None else replace(op, module=(ROOT, str(t), *(op.module or ("<own>",))))
        for op, t in zip(trace.ops, owners, strict=True)
    )
    count = 1 + max(t for t in owners if t is not None)
    steps = (Module(path=(ROOT, str(t)), type="Step") for t in range(count))
    return replace(trace, ops=ops, modules=(*trace.modules, Module(path=(ROOT,), type="ModuleList"), *steps))


def cell_of(trace: Trace) -> str:
    """The module of which each time step is a call, by its name; empty where steps are written out around modules."""
    owners = time_steps(trace)
    inside = [op.module for op, t in zip(trace.ops, owners, strict=True) if t is not None and op.phase is Phase.FORWARD]
    shared = tuple(names[0] for names in takewhile(lambda names: len({*names}) == 1, zip(*inside, strict=False)))
    name = ".".join(shared)
    if not shared or not _is_called(trace, shared):
        return ""
    try:
        calls = calls_of_cell(trace, name)
    except UnsupportedError:
        return ""
    return name if max(t for t in calls if t is not None) == max(t for t in owners if t is not None) else ""


def _is_called(trace: Trace, path: tuple[str, ...]) -> bool:
    """A list of modules is not."""
    return all(module.type not in ("ModuleList", "ModuleDict") for module in trace.modules if module.path == path)


def calls_of_cell(trace: Trace, cell: str) -> list[int | None]:
    """The call of module `cell` that each op belongs to, None for ops of others.

    Raises `UnsupportedError` for a module that is not called several times, alike each time.
    """
    path = tuple(cell.split("."))
    forward = [
        k for k, op in enumerate(trace.ops) if op.phase is Phase.FORWARD and op.module[: len(path)] == path
    ]  # fmt: skip
    start, period, length = longest_repetition([_key_with_weights(trace, trace.ops[k]) for k in forward])
    if not forward or start or length < len(forward) or length % period:
        raise UnsupportedError(
            f"remat.cell: {trace.origin.target or 'the step'} does not call {cell} several times, alike each time",
            hint="name the module that is called for each time step",
        )
    owners: list[int | None] = [None] * len(trace.ops)
    for n, k in enumerate(forward):
        owners[k] = n // period
    backward = [k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD and op.module[: len(path)] == path]
    if backward:
        _add_backward(trace, backward, owners)
    return owners


def parts_of(trace: Trace, cell: str) -> tuple[list[int | None], list[int], int]:
    """Block and call of each op, and how many blocks there are; with a `cell` its calls are the blocks."""
    if cell:
        owners = calls_of_cell(trace, cell)
        return owners, [0] * len(owners), 1 + max(t for t in owners if t is not None)
    owners, count = owners_of(trace)
    return owners, calls_of(trace.ops, owners), count


def _key_with_weights(trace: Trace, op: Op) -> Hashable:
    """What a call does once, if it is told by the weights too."""
    return _key(op), tuple(i for i in op.reads if trace.storages[i].kind is Kind.PARAM)


def time_steps(trace: Trace) -> list[int | None]:
    """The time step of each op, None for what lies around them."""
    forward = [k for k, op in enumerate(trace.ops) if op.phase is Phase.FORWARD]
    backward = [k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD]
    start, period, length = longest_repetition([_key(trace.ops[k]) for k in forward])
    if length < _LEAST * period or 2 * length < len(forward):
        raise UnsupportedError(
            f"{trace.origin.target or 'the step'} is no unrolled recurrent network: its forward pass repeats "
            f"{length} of {len(forward)} ops",
            hint="cuDNN's recurrent layers are one op: planning needs a cell that is called for each time step",
        )
    first = min(range(start, start + period), key=lambda at: _crossing(trace, forward[at + period]))
    owners: list[int | None] = [None] * len(trace.ops)
    for n, k in enumerate(forward[first : start + length]):
        if n // period < (start + length - first) // period:
            owners[k] = n // period
    _add_backward(trace, backward, owners)
    return owners


def longest_repetition(keys: Sequence[Hashable]) -> tuple[int, int, int]:
    """Start, period and length of the longest stretch in which everything comes again after a period.

    >>> longest_repetition("xababababy")
    (1, 2, 8)
    """
    ids: dict[Hashable, int] = {}
    row = np.array([ids.setdefault(key, len(ids)) for key in keys])
    best = (0, 1, 0)
    for period in range(1, len(row) // 2 + 1):
        same = np.concatenate(([False], row[:-period] == row[period:], [False]))
        edges = np.flatnonzero(same[1:] != same[:-1])
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if end - start >= period and end - start + period > best[2]:
                best = (start, period, end - start + period)
    return best


def _key(op: Op) -> Hashable:
    return op.name, op.module


def _crossing(trace: Trace, k: int) -> int:
    """Bytes made before op `k` and used in the forward pass behind it."""
    found = 0
    for i, life in lives(trace.ops).items():
        if 0 <= life.made < k and any(use >= k and trace.ops[use].phase is Phase.FORWARD for use in life.uses):
            found += trace.storages[i].nbytes
    return found


def _add_backward(trace: Trace, backward: Sequence[int], owners: list[int | None]) -> None:
    """Give backward ops to steps: whole periods in reverse, and what lies before and behind them by what it reads."""
    read = _read(trace, backward, owners)
    start, period, length = longest_repetition([_key(trace.ops[k]) for k in backward])
    first, top = max(
        ((at, _owner(read[at : at + period])) for at in range(start, start + min(period, length - period + 1))),
        key=lambda found: _agreement(read, found[0], found[1], period, start + length),
    )
    end = first + (start + length - first) // period * period
    end = min(end, first + (top + 1) * period)
    for n, k in enumerate(backward[first:end]):
        owners[k] = top - n // period
    below = top - (end - first) // period
    last = max(t for t in owners if t is not None)
    told = [n for n, step in enumerate(read) if step is not None]
    if told and top < last:
        _add_rest(backward[told[0] : first], read[told[0] : first], owners, top + 1, last)
    if told and below >= 0:
        _add_rest(backward[end : told[-1] + 1], read[end : told[-1] + 1], owners, 0, below)


def _add_rest(ops: Sequence[int], read: Sequence[int | None], owners: list[int | None], low: int, high: int) -> None:
    """Ops of no whole period go to the steps `high` to `low`, downward, by what they read."""
    current = high
    for k, step in zip(ops, read, strict=True):
        if step is not None:
            current = min(max(step, low), current)
        owners[k] = current


def _read(trace: Trace, backward: Sequence[int], owners: Sequence[int | None]) -> list[int | None]:
    """The step of each backward op: of the forward op that read or made what it reads, where that is one; or None.

    States are read in two steps, inputs of a whole sequence in all; a product reads what the step before made.
    """
    known = lives(trace.ops)
    users: dict[int, list[int]] = defaultdict(list)
    for k, op in enumerate(trace.ops):
        if op.phase is Phase.FORWARD and owners[k] is not None:
            for i in {*op.reads, *op.writes}:
                users[i].append(k)
    found: list[int | None] = []
    for k in backward:
        op = trace.ops[k]
        mine = [i for i in op.reads if known[i].made >= 0]
        steps = [{owners[f] for f in users[i] if _is_node_of(op, trace.ops[f])} for i in mine]
        certain = [t for some in steps if len(some) == 1 for t in some if t is not None]
        if certain:
            found.append(max(certain))
        else:
            found.append(None if base(op.name) in _PRODUCTS else _latest(owners, [known[i].made for i in mine]))
    return found


def _is_node_of(op: Op, forward: Op) -> bool:
    """Whether a backward op may belong to a forward op, by their names."""
    if base(op.name) in _PRODUCTS:
        return base(forward.name) in _PRODUCTS
    return is_backward_of(base(op.name).rstrip("_"), base(forward.name))


def _latest(owners: Sequence[int | None], made: Sequence[int]) -> int | None:
    return max((t for k in made if k >= 0 and (t := owners[k]) is not None), default=None)


def _owner(read: Sequence[int | None]) -> int:
    return max((t for t in read if t is not None), default=0)


def _agreement(read: Sequence[int | None], first: int, top: int, period: int, end: int) -> tuple[int, int]:
    """Fewest ops that read of a step other than their own and the one before; then most that read of their own."""
    wrong = own = 0
    for n, step in enumerate(read[first:end]):
        owner = top - n // period
        own += step == owner
        wrong += step is not None and step not in (owner, owner - 1)
    return -wrong, own


def check_between(trace: Trace, runs: Iterable[Sequence[int]]) -> None:
    """Raise `UnsupportedError` for a run of blocks with something between them that its backward pass needs.

    Args: `runs`: the forward ops of each, in order.
    """
    for run in runs:
        inside = set(run)
        for k in range(run[0], run[-1]):
            op = trace.ops[k]
            if op.phase is Phase.FORWARD and k not in inside and any(trace.storages[i].saved for i in op.writes):
                raise UnsupportedError(
                    f"a run of remat.segments cannot be computed again as one: {'.'.join(op.module) or 'the model'} "
                    "runs between its blocks, which have to follow each other with nothing between",
                    hint="name single blocks: --set remat.policy=full",
                )
