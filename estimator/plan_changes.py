"""Many plans from few settings: what a search makes of a space, where plans share their parts.

>>> changes, plan = Changes(), Plan()
>>> one, two = (changes.made(plan, ("remat.policy=full", f"mesh.dp_shard={n}")) for n in (2, 4))
>>> one.mesh.dp_shard, two.mesh.dp_shard, one.remat is two.remat
(2, 4, True)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import read_setting

_PARTS = tuple(part.name for part in fields(Plan))


@dataclass(slots=True, kw_only=True, eq=False)
class Changes:
    """Parts of plans that were made before: equal ones are one object."""

    values: dict[str, tuple[str, str, Any]] = field(default_factory=dict)
    """What settings mean: part, name and value."""
    parts: dict[tuple[int, str], Any] = field(default_factory=dict)
    """By the identity of a part, all of which are kept here, and a setting."""
    kept: list[Any] = field(default_factory=list)
    """Parts that came from outside."""

    def made(self, plan: Plan, settings: Iterable[str]) -> Plan:
        """`plan` with each of `settings`, as `plan_text.change` has it, but not checked."""
        changed: dict[str, Any] = {}
        for setting in settings:
            value = self.values.get(setting)
            if value is None:
                value = self.values[setting] = read_setting(setting)
            part = changed[value[0]] if value[0] in changed else getattr(plan, value[0])
            key = (id(part), setting)
            if key not in self.parts:
                self.kept.append(part)
                self.parts[key] = replace(part, **{value[1]: value[2]})
            changed[value[0]] = self.parts[key]
        if not changed:
            return plan
        return Plan(**{name: changed[name] if name in changed else getattr(plan, name) for name in _PARTS})
