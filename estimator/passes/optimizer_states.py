"""Moments in 16 bits (Ramesh et al. 2021): they rest in bfloat16 or float16, and are widened one parameter at a time.

    exp_avg (16 bits) -> float32   exp_avg_sq -> float32   the optimizer's own update   -> 16 bits   -> 16 bits

In float16, whose range is small, a tensor is divided by a scale of its own, so that its largest entry is 2^15.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dnnmem.estimator.passes.optimizer_rule import Ops
from dnnmem.estimator.passes.optimizer_update import Entry, Update, shaped
from dnnmem.estimator.passes.update import in_type
from dnnmem.estimator.trace import Storage
from dnnmem.estimator.trace_copy import storage_like

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""States of one entry an element, by the names that torch's optimizers give them."""
SCALE = "_scale"
"""What the name of a scale ends with."""


def narrow_states(states: Mapping[str, Storage], dtype: str | None) -> dict[str, Storage]:
    """The states with moments in `dtype`; as they are for None, and where they have 16 bits anyway."""
    found: dict[str, Storage] = {}
    for name, s in states.items():
        if dtype is None or name not in MOMENTS or s.dtype != "float32":
            found[name] = s
            continue
        found[name] = in_type(s, dtype)
        if dtype == "float16":
            found[name + SCALE] = shaped(s, ())
    return found


def update_narrow(update: Update, entry: Entry, ops: Ops) -> None:
    """The update of one parameter, whose moments are widened for it; `ops` emits the optimizer's own."""
    wide: dict[str, int] = {}
    for name, i in entry.states.items():
        s = update.storage(i)
        if name not in MOMENTS or s.dtype == update.storage(entry.param).dtype:
            continue
        like = storage_like(s, dtype="float32", nbytes=2 * s.nbytes)
        [wide[name]] = update.make("aten._to_copy.default", (i,), [like])
        if name + SCALE in entry.states:
            update.op("aten.mul_.Tensor", (wide[name], entry.states[name + SCALE]), (wide[name],))
    ops(update, [replace(entry, states={**entry.states, **wide})])
    for name, i in wide.items():
        _put(update, i, entry.states[name], entry.states.get(name + SCALE))


def _put(update: Update, wide: int, narrow: int, scale: int | None) -> None:
    """Round a moment; what it was widened to goes."""
    if scale is not None:
        norm = update.reduce("aten.linalg_vector_norm.default", wide, shaped(update.storage(wide), ()))
        update.op("aten.div_.Tensor", norm, norm)
        update.op("aten.clamp_.default", norm, norm)
        update.op("aten.div_.Tensor", (wide, *norm), (wide,))
        update.copy(scale, norm[0])
        update.free(norm)
    update.copy(narrow, wide)
    update.free((wide,))
