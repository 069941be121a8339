"""GaLore's update, as `profilers/optimizers/galore.py` makes it: hidden matrices in turn, then AdamW's list.

    (r, c), r <= c    P (r, k)    Pt g (k, c) | m, v (k, c) | P adam (r, c)          k = RANK, or r where that is less

Projections are renewed each `EVERY` steps, from singular vectors of all of the gradient. The step that is predicted is
such a step in its memory, and the mean of all in its time.
"""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.estimator.passes.optimizer_rule import Rule, moments
from dnnmem.estimator.passes.optimizer_torch import adam_foreach
from dnnmem.estimator.passes.optimizer_update import Entry, Update, shaped
from dnnmem.estimator.trace import Storage

RANK, EVERY = 128, 200
"""Rank of projections, and steps from one to the next."""
_SVD_FLOPS = (4, 8)
"""Of singular values and vectors of a tall matrix (m, n): 4 m^2 n + 8 m n^2 (Golub & Van Loan, section 8.6)."""


def _low(param: Storage) -> tuple[int, int, int]:
    """Short side, long side and rank."""
    short, long = sorted(param.shape)
    return short, long, min(RANK, short)


def _low_shape(param: Storage) -> tuple[int, int]:
    _, long, rank = _low(param)
    return (rank, long) if param.shape[0] <= param.shape[1] else (long, rank)


def _hidden_states(param: Storage) -> dict[str, Storage]:
    short, _, rank = _low(param)
    low = shaped(param, _low_shape(param))
    return {"projection": shaped(param, (short, rank)), "exp_avg": low, "exp_avg_sq": low}


def _loop(update: Update, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.hidden:
            update.every = EVERY
            _renew(update, entry)
            update.every = 1
            _matrix(update, entry)
    adam_foreach(update, [entry for entry in entries if not entry.hidden], decayed=False)


def _renew(update: Update, entry: Entry) -> None:
    """Singular vectors of the matrix standing, in float32; inside, a copy and what cuSOLVER's `gesvdj` works on."""
    g = update.storage(entry.grad)
    short, long, _ = _low(update.storage(entry.param))
    a, b = _SVD_FLOPS
    wide: tuple[int, ...] = ()
    if g.dtype != "float32":
        wide = tuple(update.make("aten._to_copy.default", (entry.grad,), [shaped(g, g.shape, "float32")]))
    made = update.make(
        "aten._linalg_svd.default", wide or (entry.grad,),
        [shaped(g, shape, "float32") for shape in ((long, short), (short,), (short, short))],
        flops=a * long * long * short + b * long * short * short,
        inside=(4 * long * short, 4 * (2 * long * short + short * short)),
    )  # fmt: skip
    update.free(wide)
    for i in made[:2]:
        update.free((i,))
    projection = entry.states["projection"]
    update.op("aten.copy_.default", (projection, *made[2:]), (projection,), moved=2 * update.storage(projection).nbytes)
    update.free(made[2:])


def _matrix(update: Update, entry: Entry) -> None:
    p, g, projection = entry.param, entry.grad, entry.states["projection"]
    m, v = entry.states["exp_avg"], entry.states["exp_avg_sq"]
    short, long, rank = _low(update.storage(p))
    wide = update.storage(p).shape[0] <= update.storage(p).shape[1]
    flops = 2 * short * long * rank
    low = update.make("aten.mm.default", (projection, g) if wide else (g, projection), [update.storage(m)], flops=flops)
    update.op("aten.lerp_.Scalar", (m, *low), (m,))
    update.op("aten.mul_.Tensor", (v,), (v,))
    update.op("aten.addcmul_.default", (v, *low), (v,))
    root = update.make("aten.sqrt.default", (v,), [update.storage(v)])
    update.op("aten.add_.Tensor", root, root)
    update.op("aten.div.out", (m, *root, *low), low, moved=3 * update.storage(m).nbytes)
    update.free(root)
    pair = (projection, *low) if wide else (*low, projection)
    new = update.make("aten.mm.default", pair, [update.storage(p)], flops=flops)
    update.op("aten.mul_.Tensor", (p,), (p,))
    update.op("aten.add_.Tensor", (p, *new), (p,))
    update.free(low)
    update.free(new)


GALORE = Rule(
    kernels={"for_loop": _loop}, states={"for_loop": moments}, hidden_states=_hidden_states, needs="matrices"
)  # fmt: skip
