"""Shampoo's update, as `profilers/optimizers/shampoo.py` makes it: one parameter after the other.

    (r, c)    L += g gt (r, r)    R += gt g (c, c)    root(L) g (r, c)    root(L) g root(R) (r, c)

Roots are renewed each `EVERY` steps. The step that is predicted is such a step in its memory, and the mean of all in
its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from dnnmem.estimator.passes.optimizer_rule import Rule
from dnnmem.estimator.passes.optimizer_update import Entry, Update, shaped
from dnnmem.estimator.trace import Storage

LONGEST, EVERY = 8192, 10
"""Longest side with a preconditioner, and steps from root to root."""
EIGEN_FLOPS = 9
"""Of all eigenvalues and vectors of a symmetric matrix, as multiples of n^3 (Golub & Van Loan, section 8.3)."""


def flat(storage: Storage) -> Storage:
    """A tensor as a matrix of its first and all other dimensions."""
    return shaped(storage, (storage.shape[0], prod(storage.shape[1:])))


def sides(storage: Storage) -> dict[str, int]:
    """Sides of a matrix that have a preconditioner, and their lengths."""
    if len(storage.shape) < 2:
        return {}
    return {name: n for name, n in zip(("left", "right"), flat(storage).shape, strict=True) if n <= LONGEST}


def square(like: Storage, n: int) -> Storage:
    """A preconditioner."""
    return shaped(like, (n, n))


def collect(update: Update, entry: Entry, name: str) -> None:
    """Add the product of the gradient with itself to a preconditioner."""
    matrix, g = entry.states[name], entry.grad
    n = update.storage(matrix).shape[0]
    flops = 2 * n * prod(update.storage(entry.param).shape)
    update.op("aten.addmm_.default", (matrix, g, g), (matrix,), flops=flops)


def eigen_bytes(n: int) -> tuple[int, int]:
    """The status that cuSOLVER's `syevd` leaves, and what it works on."""
    return 4, 4 * (1 + 6 * n + 2 * n * n)


def eigen(update: Update, matrix: int) -> tuple[int, ...]:
    """Eigenvalues and vectors."""
    s = update.storage(matrix)
    n = s.shape[0]
    return update.make(
        "aten._linalg_eigh.default", (matrix,), [shaped(s, (n,)), s], flops=EIGEN_FLOPS * n**3, inside=eigen_bytes(n)
    )


def _states(param: Storage) -> dict[str, Storage]:
    if len(param.shape) < 2:
        return {"sum": param}
    return {
        f"{name}{part}": square(param, n) for name, n in sides(param).items() for part in ("", "_root")
    }  # fmt: skip


def _loop(update: Update, entries: Sequence[Entry]) -> None:
    for entry in entries:
        update.op("aten.mul_.Tensor", (entry.param,), (entry.param,))
        if len(update.storage(entry.param).shape) > 1:
            _matrix(update, entry)
        else:
            _vector(update, entry)


def _matrix(update: Update, entry: Entry) -> None:
    p, like = entry.param, flat(update.storage(entry.param))
    for name in sides(like):
        collect(update, entry, name)
        update.every = EVERY
        _renew(update, entry.states[name], entry.states[f"{name}_root"])
        update.every = 1
    found: tuple[int, ...] = (entry.grad,)
    for name, n in sides(like).items():
        root = entry.states[f"{name}_root"]
        pair = (root, *found) if name == "left" else (*found, root)
        new = update.make("aten.mm.default", pair, [like], flops=2 * n * prod(like.shape))
        update.free(found if found[0] != entry.grad else ())
        found = new
    update.op("aten.add_.Tensor", (p, *found), (p,))
    update.free(found if found[0] != entry.grad else ())


def _renew(update: Update, matrix: int, root: int) -> None:
    n = update.storage(matrix).shape[0]
    values, vectors = eigen(update, matrix)
    update.op("aten.clamp_.default", (values,), (values,))
    update.op("aten.pow_.Scalar", (values,), (values,))
    scaled = update.make("aten.mul.Tensor", (vectors, values), [update.storage(matrix)])
    update.op("aten.mm.out", (*scaled, vectors, root), (root,), flops=2 * n**3, moved=3 * update.storage(root).nbytes)
    update.free(scaled)
    update.free((values,))
    update.free((vectors,))


def _vector(update: Update, entry: Entry) -> None:
    p, g, total = entry.param, entry.grad, entry.states["sum"]
    update.op("aten.addcmul_.default", (total, g), (total,))
    root = update.make("aten.sqrt.default", (total,), [update.storage(total)])
    update.op("aten.add_.Tensor", root, root)
    update.op("aten.addcdiv_.default", (p, g, *root), (p,))
    update.free(root)


SHAMPOO = Rule(kernels={"for_loop": _loop}, states={"for_loop": _states}, needs="matrices")
