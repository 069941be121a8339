"""SGD and AdamW of torch, AdamW8bit of torchao and bitsandbytes: their states, and each kernel's ops and temporaries.

After torch/optim/{sgd,adamw}.py (2.14), torchao/optim (0.18) and bitsandbytes/optim/optimizer.py (0.50). Lists of
foreach are those of one element type. Weight decay that is added to gradients (SGD, Adam) makes a new gradient where
the step was recorded with it; a kernel that is fused has no need of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

from dnnmem.estimator.passes.optimizer_rule import (
    Ops,
    Rule,
    columns,
    lists_of,
    moments,
    momentum_state,
    no_states,
    states_of,
)
from dnnmem.estimator.passes.optimizer_update import Entry, Update
from dnnmem.estimator.trace import Kind, Storage
from dnnmem.estimator.trace_copy import storage_like

COUNTER = Storage(id=0, nbytes=4, kind=Kind.OPTIMIZER, dtype="float32")
"""The number of steps of a parameter."""
LEAST_8BIT, BLOCK_8BIT = 4096, 256
"""torchao quantizes states of so many elements and more, in whole blocks (`_AdamBase._new_buffer`)."""
BLOCKWISE_8BIT = "bitsandbytes.optimizer_update_8bit_blockwise.default"
"""The kernel of bitsandbytes, which takes blocks that are not whole, and has one map of codes for all parameters."""
COMPILED_8BIT = "dnnmem.adamw8bit"
"""The kernel that torch.compile makes of `single_param_adam`."""


def _counted_moments(param: Storage) -> dict[str, Storage]:
    return {"step": COUNTER, **moments(param)}


def _moments_8bit(param: Storage) -> dict[str, Storage]:
    count = prod(param.shape)
    if count < LEAST_8BIT or count % BLOCK_8BIT:
        return moments(param)
    parts = {
        "codes": storage_like(param, nbytes=count, dtype="uint8"),
        "scale": _floats((count // BLOCK_8BIT,)),
        "qmap": _floats((256,)),
    }
    return {f"{moment}.{name}": part for moment in moments(param) for name, part in parts.items()}


def _moments_of_bitsandbytes(param: Storage) -> dict[str, Storage]:
    count = prod(param.shape)
    if count < LEAST_8BIT:
        return {"state1": param, "state2": param}
    codes, scales = storage_like(param, nbytes=count, dtype="uint8"), _floats((-(-count // BLOCK_8BIT),))
    return {"state1": codes, "state2": codes, "absmax1": scales, "absmax2": scales}


def _floats(shape: tuple[int, ...]) -> Storage:
    return Storage(id=0, nbytes=4 * prod(shape), kind=Kind.OPTIMIZER, shape=shape, dtype="float32")


def _sgd_loop(update: Update, entries: Sequence[Entry], *, decayed: bool, momentum: bool) -> None:
    for entry in entries:
        p, g = entry.param, entry.grad
        made = update.make("aten.add.Tensor", (g, p), [update.storage(p)]) if decayed else ()
        g = made[0] if made else g
        if momentum:
            b = entry.states["momentum_buffer"]
            update.op("aten.mul_.Tensor", (b,), (b,))
            update.op("aten.add_.Tensor", (b, g), (b,))
            g = b
        update.op("aten.add_.Tensor", (p, g), (p,))
        update.free(made)


def _sgd_foreach(update: Update, entries: Sequence[Entry], *, decayed: bool, momentum: bool) -> None:
    for some in lists_of(update, entries):
        p, g = columns(some)
        if decayed:
            g = list(update.make("aten._foreach_add.List", (*g, *p), [update.storage(i) for i in p]))
            update.hold("grads", g)
        if momentum:
            b = states_of(some, "momentum_buffer")
            update.op("aten._foreach_mul_.Scalar", b, b)
            update.op("aten._foreach_add_.List", (*b, *g), b)
            g = b
        update.op("aten._foreach_add_.List", (*p, *g), p)
    update.release("grads")


def _sgd_fused(update: Update, entries: Sequence[Entry], *, momentum: bool) -> None:
    for some in lists_of(update, entries):
        p, g = columns(some)
        b = states_of(some, "momentum_buffer") if momentum else []
        update.op("aten._fused_sgd_.default", (*p, *g, *b), (*p, *b, *_casts(some)))


def _adam_loop(update: Update, entries: Sequence[Entry], *, decayed: bool) -> None:
    for entry in entries:
        p, g, m, v = entry.param, entry.grad, entry.states["exp_avg"], entry.states["exp_avg_sq"]
        made: tuple[int, ...] = ()
        if decayed:
            made = update.make("aten.add.Tensor", (g, p), [update.storage(p)])
            g = made[0]
        else:
            update.op("aten.mul_.Tensor", (p,), (p,))
        update.op("aten.lerp_.Scalar", (m, g), (m,))
        update.op("aten.mul_.Tensor", (v,), (v,))
        update.op("aten.addcmul_.default", (v, g), (v,))
        root = update.make("aten.sqrt.default", (v,), [update.storage(v)])
        denom = update.make("aten.div.Tensor", root, [update.storage(v)])
        update.free(root)
        update.op("aten.add_.Tensor", denom, denom)
        update.hold("denom", denom)
        update.op("aten.addcdiv_.default", (p, m, *denom), (p,))
        update.free(made)
    update.release("denom")


def adam_foreach(update: Update, entries: Sequence[Entry], *, decayed: bool) -> None:
    """AdamW's usual kernel, and Adam's with weight decay that is added to gradients."""
    for some in lists_of(update, entries):
        p, g = columns(some)
        m, v = states_of(some, "exp_avg"), states_of(some, "exp_avg_sq")
        update.op("aten._foreach_add_.Tensor", ())
        if decayed:
            g = list(update.make("aten._foreach_add.List", (*g, *p), [update.storage(i) for i in p]))
            update.hold("grads", g)
        else:
            update.op("aten._foreach_mul_.Scalar", p, p)
        update.op("aten._foreach_lerp_.Scalar", (*m, *g), m)
        update.op("aten._foreach_mul_.Scalar", v, v)
        update.op("aten._foreach_addcmul_.Scalar", (*v, *g), v)
        update.release("grads")
        root = update.make("aten._foreach_sqrt.default", v, [update.storage(i) for i in v])
        update.hold("exp_avg_sq_sqrt", root)
        update.op("aten._foreach_div_.ScalarList", root, root)
        update.op("aten._foreach_add_.Scalar", root, root)
        update.op("aten._foreach_addcdiv_.ScalarList", (*p, *m, *root), p)
    update.release("exp_avg_sq_sqrt")


def _adam_fused(update: Update, entries: Sequence[Entry]) -> None:
    for some in lists_of(update, entries):
        p, g = columns(some)
        m, v, steps = (states_of(some, name) for name in ("exp_avg", "exp_avg_sq", "step"))
        update.op("aten._foreach_add_.Scalar", steps, steps)
        update.op("aten._fused_adamw_.default", (*p, *g, *m, *v, *steps), (*p, *m, *v, *_casts(some)))


def _casts(entries: Sequence[Entry]) -> list[int]:
    """A fused kernel over master weights writes the parameters that compute as well (Megatron-LM's, through apex)."""
    return [entry.copy for entry in entries if entry.copy is not None]


def _adam_8bit(update: Update, entries: Sequence[Entry], *, kernel: str) -> None:
    for entry in entries:
        states = list(entry.states.values())
        kept = [i for name, i in entry.states.items() if not name.endswith("qmap")]
        update.op(kernel, (entry.param, entry.grad, *states), (entry.param, *kept))


def sgd(*, decayed: bool = False, momentum: bool = False) -> Rule:
    """SGD of torch; with momentum, or with weight decay added to gradients, only as it was recorded."""
    kernels: dict[str, Ops] = {
        "foreach": lambda update, entries: _sgd_foreach(update, entries, decayed=decayed, momentum=momentum),
        "for_loop": lambda update, entries: _sgd_loop(update, entries, decayed=decayed, momentum=momentum),
        "fused": lambda update, entries: _sgd_fused(update, entries, momentum=momentum),
    }
    return Rule(kernels=kernels, states=dict.fromkeys(kernels, momentum_state if momentum else no_states), sgd=True)


def adamw(*, decayed: bool = False) -> Rule:
    """AdamW of torch; `decayed`: Adam, with weight decay added to gradients."""
    kernels: dict[str, Ops] = {
        "foreach": lambda update, entries: adam_foreach(update, entries, decayed=decayed),
        "for_loop": lambda update, entries: _adam_loop(update, entries, decayed=decayed),
        "fused": _adam_fused,
    }
    return Rule(kernels=kernels, states={"foreach": moments, "for_loop": moments, "fused": _counted_moments})


def adamw_8bit() -> Rule:
    """AdamW8bit of torchao."""
    return Rule(kernels={"fused": partial(_adam_8bit, kernel=COMPILED_8BIT)}, states={"fused": _moments_8bit})


def adamw_8bit_of_bitsandbytes() -> Rule:
    """AdamW8bit of bitsandbytes, whose kernel takes no tensors that are spread over ranks."""
    kernels = {"fused": partial(_adam_8bit, kernel=BLOCKWISE_8BIT)}
    return Rule(kernels=kernels, states={"fused": _moments_of_bitsandbytes}, needs="blocks of elements")
