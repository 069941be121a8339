"""What an optimizer is to a pass: states of each parameter, and the ops of each of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dnnmem.estimator.passes.optimizer_update import Entry, Update
from dnnmem.estimator.trace import Storage

Ops = Callable[[Update, Sequence[Entry]], None]
"""Emits the update of a parameter group."""
States = Callable[[Storage], Mapping[str, Storage]]
"""Name -> layout of each state of a parameter, in the order in which they are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An optimizer."""

    kernels: Mapping[str, Ops]
    """By name in a plan; the first is torch's default."""
    states: Mapping[str, States]
    """The same of its states."""
    hidden_states: States | None = None
    """Those of matrices inside of the model, where it treats them otherwise: a group is these, then the others."""
    sgd: bool = False
    """SGD, with momentum or without."""
    needs: str = "elements"
    """The least that a rank must have of a parameter: `elements`, or all of it, for its `rows and columns`, `lengths`,
    `matrices`."""


def lists_of(update: Update, entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries by element type, as `_group_tensors_by_device_and_dtype` has them."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(update.storage(entry.param).dtype, []).append(entry)
    return list(found.values())


def states_of(entries: Sequence[Entry], state: str) -> list[int]:
    """One state of each entry."""
    return [entry.states[state] for entry in entries]


def columns(entries: Sequence[Entry]) -> tuple[list[int], list[int]]:
    """Parameters and gradients."""
    return [entry.param for entry in entries], [entry.grad for entry in entries]


def no_states(param: Storage) -> dict[str, Storage]:
    """Of SGD."""
    del param
    return {}


def momentum_state(param: Storage) -> dict[str, Storage]:
    """One as large as the parameter."""
    return {"momentum_buffer": param}


def moments(param: Storage) -> dict[str, Storage]:
    """Two as large as the parameter."""
    return {"exp_avg": param, "exp_avg_sq": param}
