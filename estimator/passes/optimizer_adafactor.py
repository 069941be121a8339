"""Adafactor's update (Shazeer & Stern 2018) as torch.optim.Adafactor makes it: second moments as rows and columns.

    a matrix    row_var (r, 1), col_var (1, c)    row_mean, col_mean, their product (r, c) = the update
    a vector    variance (n)                      its square, a clone = the update

A tensor of more dimensions is a stack of matrices in its last two. Norms are read back by the host, so that it waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from dnnmem.estimator.passes.optimizer_update import Entry, Update, shaped
from dnnmem.estimator.trace import Storage

_LOOP = ("row_mean", "col_mean", "grad_squared", "update")
"""Variables of `_single_tensor_adafactor`, in the order in which they go."""


def adafactor_states(param: Storage) -> Mapping[str, Storage]:
    """Name -> layout."""
    shape = param.shape
    if len(shape) < 2:
        return {"variance": param}
    return {"row_var": shaped(param, (*shape[:-1], 1)), "col_var": shaped(param, (*shape[:-2], 1, shape[-1]))}


def adafactor_loop(update: Update, entries: Sequence[Entry]) -> None:
    """One parameter after the other."""
    for entry in entries:
        p, g = entry.param, entry.grad
        _read_norm(update, p)
        update.op("aten.mul_.Tensor", (p,), (p,))
        estimate = _matrix(update, entry) if "row_var" in entry.states else _vector(update, entry)
        update.op("aten.clamp_.default", estimate, estimate)
        update.op("aten.rsqrt_.default", estimate, estimate)
        update.hold("update", estimate)
        update.op("aten.mul_.Tensor", (*estimate, g), estimate)
        _read_norm(update, estimate[0])
        update.op("aten.add_.Tensor", (p, *estimate), (p,))
    update.release(*_LOOP)


def adafactor_foreach(update: Update, entries: Sequence[Entry]) -> None:
    """Matrices as one list, vectors as another; in the order of their first."""
    lists: dict[tuple[str, bool], list[Entry]] = {}
    for entry in entries:
        lists.setdefault((update.storage(entry.param).dtype, "row_var" in entry.states), []).append(entry)
    for (_, matrices), some in lists.items():
        params, grads = [entry.param for entry in some], [entry.grad for entry in some]
        update.op("aten._foreach_add_.Tensor", ())
        for p in params:
            _read_norm(update, p)
        update.op("aten._foreach_mul_.Scalar", params, params)
        estimates = _matrices(update, some) if matrices else _vectors(update, some)
        update.op("aten._foreach_clamp_min_.Scalar", estimates, estimates)
        update.op("aten._foreach_rsqrt_.default", estimates, estimates)
        update.op("aten._foreach_mul_.List", (*estimates, *grads), estimates)
        update.hold("updates", estimates)
        for estimate in estimates:
            _read_norm(update, estimate)
        update.op("aten._foreach_mul_.ScalarList", estimates, estimates)
        update.op("aten._foreach_add_.List", (*params, *estimates), params)
    update.release("updates")


def _matrix(update: Update, entry: Entry) -> tuple[int, ...]:
    row, col = entry.states["row_var"], entry.states["col_var"]
    for variable, var in (("row_mean", row), ("col_mean", col)):
        mean = _norms(update, entry, var)
        update.op("aten.pow_.Scalar", mean, mean)
        update.op("aten.div_.Tensor", mean, mean)
        update.hold(variable, mean)
        update.op("aten.lerp_.Scalar", (var, *mean), (var,))
    estimate = _product(update, entry)
    mean = _row_mean(update, row)
    update.op("aten.clamp_.default", mean, mean)
    update.op("aten.div_.Tensor", (*estimate, *mean), estimate)
    update.free(mean)
    return estimate


def _vector(update: Update, entry: Entry) -> tuple[int, ...]:
    variance = entry.states["variance"]
    squared = update.make("aten.mul.Tensor", (entry.grad,), [update.storage(variance)])
    update.hold("grad_squared", squared)
    update.op("aten.lerp_.Scalar", (variance, *squared), (variance,))
    return update.make("aten.clone.default", (variance,), [update.storage(variance)])


def _matrices(update: Update, entries: Sequence[Entry]) -> list[int]:
    for name in ("row_var", "col_var"):
        means: list[int] = []
        variances = [entry.states[name] for entry in entries]
        for entry, var in zip(entries, variances, strict=True):
            means += _norms(update, entry, var)
        update.op("aten._foreach_mul_.List", means, means)
        update.op("aten._foreach_div_.ScalarList", means, means)
        update.op("aten._foreach_lerp_.ScalarList", (*variances, *means), variances)
        update.free(means)
    estimates = [i for entry in entries for i in _product(update, entry)]
    means = [i for entry in entries for i in _row_mean(update, entry.states["row_var"])]
    update.op("aten._foreach_clamp_min_.Scalar", means, means)
    update.op("aten._foreach_div_.List", (*estimates, *means), estimates)
    update.free(means)
    return estimates


def _vectors(update: Update, entries: Sequence[Entry]) -> list[int]:
    variances, grads = [entry.states["variance"] for entry in entries], [entry.grad for entry in entries]
    layouts = [update.storage(i) for i in variances]
    squared = update.make("aten._foreach_mul.List", grads, layouts)
    update.op("aten._foreach_lerp_.ScalarList", (*variances, *squared), variances)
    update.free(squared)
    return [i for var in variances for i in update.make("aten.clone.default", (var,), [update.storage(var)])]


def _norms(update: Update, entry: Entry, var: int) -> tuple[int, ...]:
    """Of the gradient's rows, or of its columns."""
    dim = -1 if var == entry.states["row_var"] else -2
    return update.reduce("aten.linalg_vector_norm.default", entry.grad, update.storage(var), (dim,))


def _product(update: Update, entry: Entry) -> tuple[int, ...]:
    """Rows times columns: of the parameter's shape."""
    param, row = update.storage(entry.param), entry.states["row_var"]
    name = "aten.mm.default" if len(param.shape) == 2 else "aten.bmm.default"
    return update.make(name, (row, entry.states["col_var"]), [param], flops=2 * prod(param.shape))


def _row_mean(update: Update, row: int) -> tuple[int, ...]:
    s = update.storage(row)
    return update.reduce("aten.mean.dim", row, shaped(s, (*s.shape[:-2], 1, 1)), (-2,))


def _read_norm(update: Update, tensor: int) -> None:
    """A norm, which the host waits for."""
    norm = update.reduce("aten.linalg_vector_norm.default", tensor, shaped(update.storage(tensor), ()))
    update.op("aten._local_scalar_dense.default", norm)
    update.free(norm)
