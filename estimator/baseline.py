"""Memory that was accepted once, and whether a step needs more now: what `dnnmem check` gates.

    key      what must be equal for two numbers to be comparable: target, its sizes, device, GPU, torch, allocator
    entry    bytes of a step: its peak, its parts, and what each module holds at the peak
    verdict  ok | improved | regressed | new | over budget, with the modules that changed, largest first

The peak of live bytes is gated: it moves by what the model does. What the allocator reserves moves in steps of whole
segments, and is told beside it; a budget is held against the whole, context included.

>>> key = Key(target="model.py", batch={"batch_size": 8}, device="fake", gpu=None, torch="2.14")
>>> old = Entry(key=key, allocated_bytes=100, parts={"activations": 60}, modules={("fc", "activation"): 60})
>>> new = Entry(key=key, allocated_bytes=110, parts={"activations": 70}, modules={("fc", "activation"): 70})
>>> verdict = judge(new, {key.text: old}, Limits(max_increase=0.02))
>>> verdict.outcome, round(verdict.increase, 3), verdict.changes[0].grown_bytes
('regressed', 0.1, 10)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dnnmem.estimator.alive import fold_paths, held_by_module
from dnnmem.estimator.diff import Change
from dnnmem.estimator.profile import Profile
from dnnmem.estimator.timeline import alive_at
from dnnmem.estimator.trace import Kind, Op, Trace
from dnnmem.estimator.units import format_bytes

OUTCOMES = ("ok", "improved", "regressed", "new", "over budget")
"""What a check may find."""
FAILING = ("regressed", "over budget")
"""Those of them that fail it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What two steps share if their bytes may be compared."""

    target: str
    """What the user named."""
    batch: Mapping[str, int | str] = field(default_factory=dict)
    """Batch size, sequence length and arguments."""
    device: str
    """`fake`, `virtual`, `cpu` or `cuda`."""
    gpu: str | None
    """Name of the GPU; None = none was named."""
    torch: str
    """Major and minor version."""
    allocator: str = ""
    """PyTorch's allocator settings; empty = its defaults."""

    @property
    def text(self) -> str:
        """The key as one line, by which baselines are sorted."""
        return f"{self.step} | {self.conditions}"

    @property
    def step(self) -> str:
        """What is run: the target and its sizes."""
        sizes = ", ".join(f"{name} {value}" for name, value in sorted(self.batch.items()))
        return f"{self.target} | {sizes}" if sizes else self.target

    @property
    def conditions(self) -> str:
        """Where it is run."""
        parts = (self.device, self.gpu or "no gpu", f"torch {self.torch}", self.allocator)
        return " | ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Bytes of one step."""

    key: Key
    """Of what."""
    allocated_bytes: int
    """Peak of live blocks."""
    reserved_bytes: int | None = None
    """Peak of the allocator's segments; None where the device has none."""
    total_bytes: int | None = None
    """All of the report's stack, CUDA context included."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """The stack by part."""
    modules: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """What is alive at the peak, by module (dotted path) and kind."""
    sources: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Where each of them is made most: phase, operator, the user's line. Not kept in files."""
    step_seconds: float | None = None
    """Time of a step; None = not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a check allows."""

    max_increase: float = 0.02
    """Share by which the peak may grow; a fall by more is an improvement."""
    budget_bytes: int | None = None
    """Most that the whole step may need; None = no such limit."""
    max_slowdown: float | None = None
    """Share by which a measured step may take longer; None = time is not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a check found for one step."""

    entry: Entry
    """The step now."""
    before: Entry | None
    """The accepted one; None = there is none with this key."""
    outcome: str
    """One of `OUTCOMES`."""
    increase: float | None
    """Peak over the accepted one, less 1; None = nothing to compare with."""
    changes: tuple[Change, ...] = ()
    """Modules that hold more or less at the peak, largest first."""
    reasons: tuple[str, ...] = ()
    """Why it fails, in sentences."""
    over_budget: bool = False
    """Whether it needs more than the budget, which no accepted memory excuses."""
    others: tuple[Key, ...] = ()
    """Keys of the same target in the baseline that were not compared, being of other conditions."""

    @property
    def fails(self) -> bool:
        """Whether the check fails by it."""
        return self.outcome in FAILING


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """A module, or equal ones, that holds more or less than was accepted."""

    label: str
    """Path, equal blocks folded: `blocks.0-11.mlp`; empty for the model itself."""
    count: int
    """How many modules it stands for."""
    grown_bytes: int
    """All of them together."""
    kinds: Mapping[str, int]
    """The same by kind."""
    since: str
    """Where most of the growth is made: phase, operator, the user's line; or where the class is defined."""


def blame(verdict: Verdict) -> tuple[Blame, ...]:
    """Who changed, first those that changed as the peak did, largest first; modules that changed alike are one line.

    What one of several equal blocks lost and another got, since the peak has moved, is counted as the difference.

    >>> changes = [Change(module=f"h.{i}", kind="param", before_bytes=0, after_bytes=4) for i in range(3)]
    >>> entry = Entry(key=Key(target="m", device="fake", gpu=None, torch="2.14"), allocated_bytes=12)
    >>> found = Verdict(entry=entry, before=None, outcome="new", increase=None, changes=tuple(changes))
    >>> [(line.label, line.count, line.grown_bytes) for line in blame(found)]
    [('h.0-2', 3, 12)]
    """
    alike: defaultdict[tuple[str, ...], dict[str, list[Change]]] = defaultdict(dict)
    for change in verdict.changes:
        path = tuple("*" if part.isdecimal() else part for part in change.module.split("."))
        alike[path].setdefault(change.module, []).append(change)
    found = [line for blocks in alike.values() for line in _lines(blocks) if line.kinds]
    way = -1 if (verdict.increase or 0) < 0 else 1
    return tuple(sorted(found, key=lambda line: (way * line.grown_bytes < 0, -abs(line.grown_bytes), line.label)))


def _grown(change: Change) -> int:
    return change.grown_bytes or 0


def _lines(blocks: Mapping[str, Sequence[Change]]) -> Iterator[Blame]:
    """The lines of modules that differ in a number only: one for all if they changed against each other."""
    signs = {(change.kind, _grown(change) > 0) for changes in blocks.values() for change in changes}
    against = len({kind for kind, _ in signs}) < len(signs)
    groups: defaultdict[object, list[str]] = defaultdict(list)
    for module, changes in blocks.items():
        groups[None if against else tuple(sorted((c.kind, _grown(c)) for c in changes))].append(module)
    for modules in groups.values():
        kinds: Counter[str] = Counter()
        members = [change for module in modules for change in blocks[module]]
        for change in members:
            kinds[change.kind] += _grown(change)
        most = (max if kinds.total() >= 0 else min)(members, key=_grown)
        yield Blame(
            label=fold_paths([tuple(module.split(".")) for module in modules]), count=len(modules),
            grown_bytes=kinds.total(), kinds={kind: n for kind, n in kinds.items() if n}, since=most.since,
        )  # fmt: skip


def entry_of(profile: Profile, trace: Trace, *, allocator: str = "") -> Entry:
    """What a baseline keeps of a profiled step."""
    torch = ".".join(profile.versions.get("torch", "?").split(".")[:2])
    key = Key(
        target=profile.target, batch=profile.batch, device=profile.device, gpu=profile.gpu, torch=torch,
        allocator=allocator,
    )  # fmt: skip
    held = {place: nbytes for place, nbytes in held_by_module(trace, profile.timeline.peak).items() if nbytes}
    return Entry(
        key=key,
        allocated_bytes=profile.peak.allocated_bytes,
        reserved_bytes=profile.peak.reserved_bytes,
        total_bytes=profile.total_bytes,
        parts={part: nbytes for part, nbytes in profile.parts.items() if nbytes},
        modules=held,
        sources=_sources(profile, trace),
        step_seconds=profile.step_seconds,
    )


def judge(entry: Entry, accepted: Mapping[str, Entry], limits: Limits) -> Verdict:
    """The verdict on a step, against the accepted one of the same key if there is one.

    Args: `accepted` entries by their keys' text.
    """
    before = accepted.get(entry.key.text)
    over = _over_budget(entry, limits)
    reasons = [over] if over else []
    if before is None:
        others = (other.key for other in accepted.values() if other.key.target == entry.key.target)
        return Verdict(
            entry=entry, before=None, outcome="over budget" if reasons else "new", increase=None,
            reasons=tuple(reasons), over_budget=bool(over), others=tuple(others),
        )  # fmt: skip
    increase = round(entry.allocated_bytes / before.allocated_bytes - 1, 12) if before.allocated_bytes else 0.0
    grown = increase > limits.max_increase
    if grown:
        reasons.append(f"its peak grew by {increase:.1%}, and {limits.max_increase:.1%} is allowed")
    slower = _slower(entry, before, limits)
    if slower:
        reasons.append(slower)
    outcome = "regressed" if grown or slower else "over budget" if reasons else "ok"
    if outcome == "ok" and increase < -limits.max_increase:
        outcome = "improved"
    return Verdict(
        entry=entry, before=before, outcome=outcome, increase=increase, changes=_changes(before, entry),
        reasons=tuple(reasons), over_budget=bool(over),
    )  # fmt: skip


def _over_budget(entry: Entry, limits: Limits) -> str:
    needed = entry.total_bytes or entry.allocated_bytes
    if limits.budget_bytes is None or needed <= limits.budget_bytes:
        return ""
    return f"it needs {format_bytes(needed)} in all, and the budget is {format_bytes(limits.budget_bytes)}"


def _slower(entry: Entry, before: Entry, limits: Limits) -> str:
    if limits.max_slowdown is None or not entry.step_seconds or not before.step_seconds:
        return ""
    ratio = entry.step_seconds / before.step_seconds - 1
    allowed = f"its step takes {ratio:.1%} longer, and {limits.max_slowdown:.1%} is allowed"
    return allowed if ratio > limits.max_slowdown else ""


def _changes(before: Entry, after: Entry) -> tuple[Change, ...]:
    old, new = before.modules, after.modules
    same = _renamed(old, new)
    found = [
        Change(
            module=place[0],
            kind=place[1],
            before_bytes=old.get(place, 0),
            after_bytes=new.get(place, 0),
            since=after.sources.get(place, ""),
        )
        for place in sorted(old.keys() | new.keys())
        if old.get(place, 0) != new.get(place, 0) and place[0] not in same
    ]
    return tuple(sorted(found, key=lambda change: -abs(_grown(change))))


def _renamed(old: Mapping[tuple[str, str], int], new: Mapping[tuple[str, str], int]) -> set[str]:
    """Modules that have gone, and those that have come in their place and hold the same: old and new names."""
    held: tuple[defaultdict[str, set[tuple[str, int]]], ...] = (defaultdict(set), defaultdict(set))
    for side, modules in zip(held, (old, new), strict=True):
        for (module, kind), nbytes in modules.items():
            side[module].add((kind, nbytes))
    gone: defaultdict[frozenset[tuple[str, int]], list[str]] = defaultdict(list)
    for module in held[0].keys() - held[1].keys():
        gone[frozenset(held[0][module])].append(module)
    same: set[str] = set()
    for module in sorted(held[1].keys() - held[0].keys()):
        if names := gone[frozenset(held[1][module])]:
            same |= {module, names.pop()}
    return same


def _sources(profile: Profile, trace: Trace) -> dict[tuple[str, str], str]:
    """For each module and kind, the op that makes most of what is alive at the peak, or the class that owns it."""
    makers = {e.storage: i for i, op in enumerate(trace.ops) for e in op.events if e.nbytes > 0}
    largest: dict[tuple[str, str], tuple[int, Op | None, str]] = {}
    for i in alive_at(trace, profile.timeline.peak):
        storage = trace.storages.get(i)
        if storage is None:  # a temporary inside an op
            continue
        place = (".".join(storage.module), storage.kind.value)
        if storage.nbytes > largest.get(place, (0, None, ""))[0]:
            kept = storage.kind is Kind.BUFFER and "." in storage.name  # an operator's name: an earlier step made it
            largest[place] = (
                storage.nbytes, trace.ops[makers[i]] if i in makers else None, storage.name if kept else ""
            )  # fmt: skip
    defined = {layer.module: layer.source for layer in profile.layers if layer.source}
    return {place: _words(op, kept, place[0], defined) for place, (_, op, kept) in largest.items()}


def _words(op: Op | None, kept: str, module: str, defined: Mapping[str, str]) -> str:
    words = [op.phase.value, op.name, op.source] if op else ["kept from an earlier step", kept] if kept else []
    if not (op and op.source):  # the nearest module around it that is the user's own
        path = module.split(".")
        around = (".".join(path[:depth]) for depth in range(len(path), -1, -1))
        owner = next((defined[name] for name in around if name in defined), "")
        words.append(f"in {owner}" if owner else "")
    return ", ".join(filter(None, words))
