"""Where a step takes a cross entropy: the product that makes its logits, the casts between, and the way back.

forward    mm(hidden, weight) -> logits   [cast]   _log_softmax   nll_loss_forward -> loss
backward   nll_loss_backward   _log_softmax_backward_data   [cast]   mm -> of hidden   mm -> of weight   [sum, cast]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dnnmem.estimator.passes.autocast_lists import Policy, base, policy_of
from dnnmem.estimator.passes.draft import Life, lives
from dnnmem.estimator.trace import Kind, Op, Phase, Storage, Trace

_CASTS = ("_to_copy",)
_PRODUCTS = frozenset({"mm", "addmm", "bmm"})
"""What may make logits; the last one where a program takes a frozen head's by pieces of its texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One cross entropy; ops by index."""

    logits: int
    """What the loss is taken of, before casts."""
    loss: int
    """The scalar."""
    made: int
    """Op that makes the logits."""
    forward: tuple[int, ...]
    """Casts of the logits, `_log_softmax` and `nll_loss_forward`, the last one."""
    backward: tuple[int, ...]
    """From `nll_loss_backward` to the op that makes `gradient`."""
    gradient: int
    """That of the logits, in their type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The product that makes the logits, and its way back."""

    hidden: int
    """What it multiplies, rows of width d."""
    factor: int
    """The matrix (v, d) in the type of the product: the parameter or a cast of it."""
    weight: int
    """The parameter."""
    bias: int | None
    """What is added, if anything is."""
    forward: tuple[int, ...]
    """The product, and the cast of its matrix."""
    backward: tuple[int, ...]
    """Products, sum, and the cast of the matrix's gradient."""
    of_hidden: int | None
    """Gradient of the hidden states."""
    of_weight: int | None
    """Gradient of the parameter, in its own type."""
    of_bias: int | None
    """Gradient of the bias."""

    @property
    def gradients(self) -> tuple[int, ...]:
        """All three, those that there are."""
        return tuple(i for i in (self.of_hidden, self.of_weight, self.of_bias) if i is not None)


def find_sites(trace: Trace, known: Mapping[int, Life]) -> list[Site]:
    """All cross entropies of logits (rows, classes) that the model makes."""
    found = []
    for k, op in enumerate(trace.ops):
        if op.phase is Phase.FORWARD and base(op.name) == "nll_loss_forward":
            site = _site(trace, known, k)
            if site is not None:
                found.append(site)
    return found


def logits_share(trace: Trace) -> float:
    """Bytes of the largest log-probabilities of a loss over the step's peak; 0 where `find_sites` finds none."""
    sites = find_sites(trace, lives(trace.ops))
    most = max((trace.storages[i].nbytes for s in sites for k in s.forward for i in trace.ops[k].writes), default=0)
    return most / max(1, trace.peak_bytes())


def _site(trace: Trace, known: Mapping[int, Life], last: int) -> Site | None:
    ops, storages = trace.ops, trace.storages
    softmax = next((known[i].made for i in ops[last].reads if i in known and known[i].made >= 0), -1)
    if softmax < 0 or base(ops[softmax].name) != "_log_softmax" or len(storages[ops[softmax].writes[0]].shape) != 2:
        return None
    logits = ops[softmax].reads[0]
    while known[logits].made >= 0 and base(ops[known[logits].made].name) in _CASTS:
        logits = ops[known[logits].made].reads[0]
    made = known[logits].made
    back = _backward(trace, known, ops[softmax].writes[0], storages[logits])
    if made < 0 or not back or base(ops[made].name) not in _PRODUCTS:
        return None  # such as logits that something is added to: the apply has no other way to their rows
    casts = [
        k for k in known[logits].uses
        if base(ops[k].name) in _CASTS and ops[k].phase is Phase.FORWARD and _ends(ops, known, k, softmax)
    ]  # fmt: skip
    gone = [i for k in (*casts, softmax) for i in ops[k].writes]
    forward = tuple(sorted({*casts, softmax, last}))
    if any(k not in (*forward, *back) for i in gone for k in known[i].uses):
        return None  # somebody else reads them
    return Site(
        logits=logits, loss=ops[last].writes[0], made=made, forward=forward, backward=back,
        gradient=ops[back[-1]].writes[0],
    )  # fmt: skip


def _ends(ops: Sequence[Op], known: Mapping[int, Life], cast: int, softmax: int) -> bool:
    """True for a cast that the loss reads, or that only the program holds."""
    return all(k in {cast, softmax} for k in known[ops[cast].writes[0]].uses)


def _backward(trace: Trace, known: Mapping[int, Life], chances: int, logits: Storage) -> tuple[int, ...]:
    """The loss's ops of the backward pass, in order; empty if they are not found."""
    ops = trace.ops
    mine = [k for k in known[chances].uses if ops[k].phase is Phase.BACKWARD]
    if [base(ops[k].name) for k in mine] != ["nll_loss_backward", "_log_softmax_backward_data"]:
        return ()
    while trace.storages[ops[mine[-1]].writes[0]].dtype != logits.dtype:
        uses = [k for k in known[ops[mine[-1]].writes[0]].uses if k > mine[-1]]
        if len(uses) != 1 or base(ops[uses[0]].name) not in _CASTS:
            return ()
        mine.append(uses[0])
    return tuple(mine)


def find_head(trace: Trace, known: Mapping[int, Life], site: Site) -> Head | None:
    """The product behind a site; None if something else makes its logits, or uses them."""
    ops, storages = trace.ops, trace.storages
    product = ops[site.made]
    if base(product.name) == "bmm" or any(
        k not in (site.made, *site.forward, *site.backward) for k in known[site.logits].uses
    ):
        return None
    *more, factor = (i for i in product.reads if len(storages[i].shape) > 1)
    weight, cast = _parameter(trace, known, factor)
    if len(more) != 1 or weight is None or storages[weight].shape[0] != storages[site.logits].shape[1]:
        return None
    added = next((i for i in product.reads if i not in {*more, factor}), None)
    bias, bias_cast = (None, -1) if added is None else _parameter(trace, known, added)
    mine = [k for k in known[site.gradient].uses if k not in site.backward]
    products = [k for k in mine if policy_of(ops[k].name) is Policy.LOWER]
    sums = [k for k in mine if base(ops[k].name) == "sum"]
    if sorted(products + sums) != mine or any(ops[k].phase is not Phase.BACKWARD for k in mine):
        return None
    casts = ((factor, cast), (added, bias_cast))
    own = [k for i, k in casts if k >= 0 and i is not None and known[i].uses[-1] in {site.made, *products}]
    of_hidden = next((ops[k].writes[0] for k in products if factor in ops[k].reads), None)
    of_weight = next((ops[k].writes[0] for k in products if more[0] in ops[k].reads), None)
    back, of_weight = _uncast(trace, known, of_weight, storages[weight].dtype)
    of_bias = next((ops[k].writes[0] for k in sums), None)
    more_back, of_bias = _uncast(trace, known, of_bias, storages[bias].dtype if bias is not None else "")
    return Head(
        hidden=more[0], factor=factor, weight=weight, bias=bias, forward=tuple(sorted({*own, site.made})),
        backward=tuple(sorted({*mine, *back, *more_back})), of_hidden=of_hidden, of_weight=of_weight, of_bias=of_bias,
    )  # fmt: skip


def _parameter(trace: Trace, known: Mapping[int, Life], i: int) -> tuple[int | None, int]:
    """The parameter that `i` is or was cast from, and the op that casts it (-1 if none does)."""
    made = known[i].made
    if made >= 0 and base(trace.ops[made].name) in _CASTS:
        i = trace.ops[made].reads[0]
    return (i, made) if trace.storages[i].kind is Kind.PARAM else (None, -1)


def _uncast(trace: Trace, known: Mapping[int, Life], i: int | None, dtype: str) -> tuple[list[int], int | None]:
    """A gradient in its parameter's type: the cast that makes it, and it."""
    if i is None or trace.storages[i].dtype == dtype:
        return [], i
    casts = [k for k in known[i].uses if base(trace.ops[k].name) in _CASTS]
    return (casts, trace.ops[casts[0]].writes[0]) if casts else ([], i)
