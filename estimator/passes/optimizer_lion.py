"""Lion's update, as `profilers/optimizers/lion.py` makes it: one moment, and the signs, as large as the parameters."""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.estimator.passes.optimizer_rule import Rule, columns, lists_of, states_of
from dnnmem.estimator.passes.optimizer_update import Entry, Update
from dnnmem.estimator.trace import Storage


def _moment(param: Storage) -> dict[str, Storage]:
    return {"exp_avg": param}


def _foreach(update: Update, entries: Sequence[Entry]) -> None:
    for some in lists_of(update, entries):
        (p, g), m = columns(some), states_of(some, "exp_avg")
        signs = update.make("aten._foreach_mul.Scalar", m, [update.storage(i) for i in m])
        update.op("aten._foreach_add_.List", (*signs, *g), signs)
        update.op("aten._foreach_sign_.default", signs, signs)
        update.op("aten._foreach_lerp_.Scalar", (*m, *g), m)
        update.op("aten._foreach_mul_.Scalar", p, p)
        update.op("aten._foreach_add_.List", (*p, *signs), p)
        update.free(signs)


LION = Rule(kernels={"foreach": _foreach}, states={"foreach": _moment})
