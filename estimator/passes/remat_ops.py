"""Which ops of a block stay, where a plan names them one by one: the half of the pass for `Remat.keep`.

    rule  addmm.0,attention     block  norm addmm attention addmm add ...     kept  addmm, attention

What is changed in place afterwards cannot be kept, nor can the op that changes it: running a block again has to repeat
both. Numbers count all ops of a name in the block's forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.keep_text import Rule, absent, absent_error, base_name
from dnnmem.estimator.trace import Trace


def numbered(trace: Trace, forward: Sequence[int]) -> dict[int, tuple[str, int]]:
    """The name and number of each op of a block's forward pass."""
    seen: Counter[str] = Counter()
    found = {}
    for k in forward:
        name = base_name(trace.ops[k].name)
        found[k] = (name, seen[name])
        seen[name] += 1
    return found


def keepable(trace: Trace, forward: Sequence[int]) -> set[int]:
    """Ops of a block's forward pass that make all that they write, and whose outputs no later one of them changes."""
    makers: dict[int, int] = {}
    changed: set[int] = set()
    for k in forward:
        op = trace.ops[k]
        made = {event.storage for event in op.events if event.nbytes > 0}
        for i in op.writes:
            if i in made:
                makers[i] = k
            elif i not in trace.pinned and trace.storages[i].nbytes:
                changed |= {k, makers.get(i, k)}
    return {k for k in forward if k not in changed and any(makers.get(i) == k for i in trace.ops[k].writes)}


def kept_ops(trace: Trace, forward: Sequence[int], rule: Rule, block: int) -> set[int]:
    """The ops of a block that `rule` keeps. Raises `UsageError` for one that it lacks, or that cannot be kept."""
    names = numbered(trace, forward)
    seen = Counter(name for name, _ in names.values())
    if missing := absent(rule, seen):
        raise absent_error(f"block {block}", missing, seen)
    possible = keepable(trace, forward)
    kept = {k for k, name in names.items() if rule.keeps(*name)}
    wrong = sorted(k for k in kept - possible if rule.ops.get(names[k][0]))
    if wrong:
        name, number = names[wrong[0]]
        raise UsageError(
            f"remat.keep names {name}.{number}, whose output is changed in place in block {block}; what is kept stays "
            "as it was made",
            hint="leave it out",
        )
    return kept & possible
