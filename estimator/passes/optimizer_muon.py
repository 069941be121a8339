"""Muon's update, as `profilers/optimizers/muon.py` makes it: hidden matrices one after the other, then AdamW's list.

(r, c)    u = momentum (float32)    X = u (bfloat16)    five times: A = X Xt (s, s), A' (s, s), X' (r, c)    s <= r, c
"""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.estimator.passes.optimizer_rule import Rule, moments, momentum_state
from dnnmem.estimator.passes.optimizer_torch import adam_foreach
from dnnmem.estimator.passes.optimizer_update import Entry, Update, shaped

ITERATIONS = 5
"""Of Newton and Schulz."""


def _loop(update: Update, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.hidden:
            _matrix(update, entry)
    adam_foreach(update, [entry for entry in entries if not entry.hidden], decayed=False)


def _matrix(update: Update, entry: Entry) -> None:
    p, g, b = entry.param, entry.grad, entry.states["momentum_buffer"]
    update.op("aten.lerp_.Scalar", (b, g), (b,))
    u = update.make("aten.lerp.Scalar", (g, b), [update.storage(p)])
    x = _orthogonal(update, u[0])
    update.op("aten.mul_.Tensor", (p,), (p,))
    update.op("aten.add_.Tensor", (p, *x), (p,))
    update.free(x)


def _orthogonal(update: Update, matrix: int) -> tuple[int, ...]:
    """Newton's and Schulz's iteration; frees `matrix`."""
    like = shaped(update.storage(matrix), update.storage(matrix).shape, "bfloat16")
    short, long = sorted(like.shape)
    x = update.make("aten._to_copy.default", (matrix,), [like])
    norm = update.reduce("aten.linalg_vector_norm.default", x[0], shaped(like, ()))
    least = update.make("aten.clamp.default", norm, [shaped(like, ())])
    update.free(norm)
    update.op("aten.div_.Tensor", (*x, *least), x)
    update.free(least)
    square = shaped(like, (short, short))
    for _ in range(ITERATIONS):
        made = update.make("aten.mm.default", (*x, *x), [square], flops=2 * short * short * long)
        update.hold("square", made)
        other = update.make("aten.addmm.default", made, [square], flops=2 * short**3)
        new = update.make("aten.addmm.default", (*x, *other), [like], flops=2 * short * short * long)
        update.free(other)
        update.free(x)
        x = new
    update.free((matrix,))
    update.release("square")
    return x


MUON = Rule(
    kernels={"for_loop": _loop}, states={"for_loop": moments}, hidden_states=momentum_state, needs="matrices"
)  # fmt: skip
