"""SOAP's update, as `profilers/optimizers/soap.py` makes it: one parameter after the other, Adam between two rotations.

    (r, c)    m, v    Qlt g Qr | root of v | Qlt m Qr / root | back    L (r, r), R (c, c) and their bases

Bases are renewed each `EVERY` steps. The step that is predicted is such a step in its memory, and the mean of all in
its time. The first step makes bases by eigenvalues and updates no matrix: it leaves memory in other pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from dnnmem.estimator.passes.optimizer_rule import Rule, moments
from dnnmem.estimator.passes.optimizer_shampoo import EVERY, collect, eigen_bytes, flat, sides, square
from dnnmem.estimator.passes.optimizer_update import OPTIMIZER, Entry, Update, shaped
from dnnmem.estimator.trace import Event, Op, Storage, Trace
from dnnmem.estimator.trace_copy import op_like

_QR_FLOPS = 3
"""Of a square matrix with its orthogonal factor, as multiples of n^3: 4/3 twice (Golub & Van Loan, section 5.2)."""
_FEW = 3072
"""Most elements that are sorted without a buffer."""


def _states(param: Storage) -> dict[str, Storage]:
    found = dict(moments(param))
    for name, n in sides(param).items():
        found.update({name: square(param, n), f"{name}_basis": square(param, n)})
    return found


def _loop(update: Update, entries: Sequence[Entry]) -> None:
    for entry in entries:
        _step(update, entry)
        found = sides(update.storage(entry.param))
        for name in found:
            collect(update, entry, name)
        update.every = EVERY
        for name, n in found.items():
            _renew(update, entry, name, n)
        update.release("product", "order")
        update.every = 1


def _step(update: Update, entry: Entry) -> None:
    p, g, m, v = entry.param, entry.grad, entry.states["exp_avg"], entry.states["exp_avg_sq"]
    update.op("aten.lerp_.Scalar", (m, g), (m,))
    rotated = _rotated(update, entry, g, kept=True)
    update.op("aten.mul_.Tensor", (v,), (v,))
    update.op("aten.addcmul_.default", (v, *rotated), (v,))
    root = update.make("aten.sqrt.default", (v,), [update.storage(v)])
    update.op("aten.add_.Tensor", root, root)
    update.free(rotated if rotated[0] != g else ())
    turned = _rotated(update, entry, m, kept=True)
    found = update.make("aten.div.Tensor", (*turned, *root), [update.storage(v)])
    update.free(turned if turned[0] != m else ())
    found = _rotated(update, entry, found[0], kept=False)
    update.op("aten.mul_.Tensor", (p,), (p,))
    update.op("aten.add_.Tensor", (p, *found), (p,))
    update.free(root)
    update.free(found)


def _rotated(update: Update, entry: Entry, tensor: int, *, kept: bool) -> tuple[int, ...]:
    """Into the eigenbases or out of them; `tensor` itself where there are none, and gone else unless it is `kept`."""
    like = update.storage(entry.param)
    found: tuple[int, ...] = (tensor,)
    for name, n in sides(like).items():
        basis = entry.states[f"{name}_basis"]
        pair = (basis, *found) if name == "left" else (*found, basis)
        new = update.make("aten.mm.default", pair, [flat(like)], flops=2 * n * prod(like.shape))
        update.free(() if kept and found[0] == tensor else found)
        found = new
    return found


def _renew(update: Update, entry: Entry, name: str, n: int) -> None:
    matrix, basis, v = entry.states[name], entry.states[f"{name}_basis"], entry.states["exp_avg_sq"]
    like, rows = update.storage(matrix), flat(update.storage(v))
    product = update.product(matrix, basis, (n, n), n)
    update.hold("product", product)
    terms = update.make("aten.mul.Tensor", (basis, *product), [like])
    sums = update.reduce("aten.sum.dim_IntList", terms[0], shaped(like, (n,)), (0,))
    update.free(terms)
    room = n * 12 + n // 5 + 8192 if n > _FEW else 1
    whole = shaped(like, (n,), "int64")
    values, order = update.make("aten.sort.default", sums, [shaped(like, (n,)), whole], inside=(8 * n, room))
    update.free((values,))
    update.free(sums)
    update.hold("order", (order,))
    sorted_v = update.make("aten.index_select.default", (v, order), [rows])
    update.copy(v, sorted_v[0])
    update.free(sorted_v)
    some = update.make("aten.index_select.default", (*product, order), [like])
    q, r = update.make("aten.linalg_qr.default", some, [like, like], flops=_QR_FLOPS * n**3, inside=_qr_bytes(n))
    update.free(some)
    update.free((r,))
    update.copy(basis, q)
    update.free((q,))


def _qr_bytes(n: int) -> tuple[int, ...]:
    """The factors' scales, and what cuSOLVER's `geqrf` works on."""
    return 4 * n, 4 * 32 * n


SOAP = Rule(kernels={"for_loop": _loop}, states={"for_loop": _states}, needs="matrices")


def first_ops(trace: Trace) -> Iterator[Op]:
    """The first step of `trace`: of a matrix's update what its bases take alone, and frees of what was there before."""
    part: list[Op] = []
    for op in trace.ops:
        inside = op.module[:1] == OPTIMIZER and "_foreach_" not in op.name
        if part and (not inside or "lerp_" in op.name):
            yield from _begun(part, trace)
            part = []
        if inside and (part or "lerp_" in op.name):
            part.append(op)
        else:
            yield op
    yield from _begun(part, trace)


def _begun(part: Sequence[Op], trace: Trace) -> Sequence[Op]:
    """What the first step does in the place of a parameter's update."""
    bases = [i for op in part for i in op.writes if trace.storages[i].name.endswith("_basis")]
    if not bases:
        return part
    made = {e.storage for op in part for e in op.events if e.nbytes > 0}
    events = tuple(e for op in part for e in op.events if e.storage >= 0 and e.storage not in made)
    ops = [
        Op(
            name="aten._linalg_eigh.default", module=OPTIMIZER, phase=part[0].phase, reads=(i,), writes=(i,),
            events=_eigen_events(trace.storages[i].shape[0]),
        )
        for i in bases
    ]  # fmt: skip
    return [*ops[:-1], op_like(ops[-1], events=(*ops[-1].events, *events))]


def _eigen_events(n: int) -> tuple[Event, ...]:
    """Vectors, values and what these take; then vectors in the other order."""
    made = tuple(Event(nbytes, 0, -1 - k) for k, nbytes in enumerate((4 * n * n, 4 * n, *eigen_bytes(n))))
    gone = tuple(Event(-e.nbytes, 0, e.storage) for e in reversed(made))
    return *made, *gone[:-1], Event(4 * n * n, 0, -1 - len(made)), Event(-4 * n * n, 0, -1 - len(made)), gone[-1]
