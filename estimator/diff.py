"""What changed between two steps: two runs, two commits, a measurement and a prediction.

    parts      each part of the stack, and the total
    modules    bytes at the peak by module and kind, largest change first; and since when: the first operator of the
               second step that allocates more there than the first step did

Where one of the two is a profile without its trace, modules are compared by the columns of the table of layers.

>>> from dnnmem.estimator.build import build_profile
>>> from dnnmem.estimator.profile import Measurement
>>> from dnnmem.estimator.trace import Event, Kind, Op, Storage
>>> def side(nbytes):
...     y = Storage(id=0, nbytes=nbytes, kind=Kind.ACTIVATION, module=("fc",))
...     op = Op(name="aten.mm", module=("fc",), source="m.py:3", events=(Event(nbytes, 0, 0), Event(-nbytes, 0, 0)))
...     trace = Trace(ops=(op,), storages={0: y})
...     return Side(profile=build_profile(trace, Measurement(), None), trace=trace)
>>> change = compare(side(8), side(12)).modules[0]
>>> change.module, change.kind, change.grown_bytes, change.since
('fc', 'activation', 4, 'forward, aten.mm, m.py:3')
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dnnmem.estimator.alive import held_by_module
from dnnmem.estimator.profile import PARTS, Profile
from dnnmem.estimator.trace import Trace

_COLUMNS = ("param", "grad", "optimizer", "activation", "temp")
"""Kinds that the table of layers has a column for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two."""

    profile: Profile
    """What it needs."""
    trace: Trace | None = None
    """Its events, where they are known: they tell since when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Bytes of something in both."""

    module: str
    """Dotted path; empty for the model itself, and for a part of the stack."""
    kind: str
    """A name of `PARTS`."""
    before_bytes: int | None
    """In the first; None where it is not known."""
    after_bytes: int | None
    """In the second."""
    since: str = ""
    """Phase, operator and line of the user from which the second has more; empty if unknown."""

    @property
    def grown_bytes(self) -> int | None:
        """After less before; None where one is not known."""
        if self.before_bytes is None or self.after_bytes is None:
            return None
        return self.after_bytes - self.before_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two profiles, compared."""

    before: Profile
    """The first."""
    after: Profile
    """The second."""
    parts: tuple[Change, ...]
    """Every part that one of them has, from bottom to top."""
    modules: tuple[Change, ...]
    """What differs at the peak, by module and kind, the largest change first."""

    @property
    def grown_bytes(self) -> int:
        """The second's total less the first's."""
        return self.after.total_bytes - self.before.total_bytes


def compare(before: Side, after: Side) -> Difference:
    """How `after` differs from `before`, each at its own peak."""
    a, b = before.profile, after.profile
    parts = [
        Change(module="", kind=part, before_bytes=a.parts.get(part), after_bytes=b.parts.get(part))
        for part in PARTS
        if a.parts.get(part) or b.parts.get(part)
    ]
    exact = before.trace is not None and after.trace is not None
    old, new = _by_module(before, exact=exact), _by_module(after, exact=exact)
    changes = [
        Change(
            module=module,
            kind=kind,
            before_bytes=old[module, kind],
            after_bytes=new[module, kind],
            since=_since(before.trace, after.trace, module, kind) if new[module, kind] > old[module, kind] else "",
        )
        for module, kind in sorted(old.keys() | new.keys())
        if old[module, kind] != new[module, kind]
    ]
    changes.sort(key=lambda change: -abs(change.grown_bytes or 0))
    return Difference(before=a, after=b, parts=tuple(parts), modules=tuple(changes))


def _by_module(side: Side, *, exact: bool) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    trace = side.trace
    if trace is None or not exact:
        for layer in side.profile.layers:
            for kind in _COLUMNS:
                found[layer.module, kind] += int(getattr(layer, f"{kind}_bytes"))
        return found
    return held_by_module(trace, side.profile.timeline.peak)


def _since(before: Trace | None, after: Trace | None, module: str, kind: str) -> str:
    """The first allocation of `after` that `before` has not: sizes are matched in order."""
    if before is None or after is None:
        return ""
    known = Counter(nbytes for _, nbytes in _made(before, module, kind))
    for index, nbytes in _made(after, module, kind):
        if known[nbytes]:
            known[nbytes] -= 1
            continue
        if index < 0:
            return "before the step"
        op = after.ops[index]
        return ", ".join(filter(None, (op.phase.value, op.name, op.source)))
    return ""


def _made(trace: Trace, module: str, kind: str) -> list[tuple[int, int]]:
    """Op and bytes of every allocation of that kind for that module; -1 for what lives before the step."""
    chosen = {i for i, s in trace.storages.items() if ".".join(s.module) == module and s.kind.value == kind}
    made = [(-1, trace.storages[i].nbytes) for i in sorted(chosen & trace.pinned)]
    for index, op in enumerate(trace.ops):
        inside = kind == "temp" and ".".join(op.module) == module
        made += [
            (index, event.nbytes)
            for event in op.events
            if event.nbytes > 0 and (event.storage in chosen or (inside and event.storage < 0))
        ]
    return made
