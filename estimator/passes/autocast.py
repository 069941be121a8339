"""Autocast: a step recorded in float32 as torch.autocast on CUDA runs it; products in a lower type, casts around them.

    recorded    norm -> y          mm(y, w) -> z                    backward   mm(g, w) -> dy      mm(g, y) -> dw
    autocast    norm -> y, y', w'  mm(y', w') -> z'    y goes with its last module              g -> g'
                                                                    mm(g', w') -> dy'  mm(g', y') -> dw'  -> dy, dw

Casts of parameters are made once and stay until the forward pass is over; of everything else each op makes its own.
What autograd keeps is what an op really read: y' and not y. The backward pass casts back wherever forward cast: the
gradient of a tensor has the tensor's type. Floating outputs of the model are cast to float32 when it returns.
"""

from __future__ import annotations

from dnnmem.estimator.passes.autocast_links import groups, links
from dnnmem.estimator.passes.autocast_lists import Policy, base, policy_of
from dnnmem.estimator.passes.typed_backward import backward
from dnnmem.estimator.passes.typed_draft import TypedDraft
from dnnmem.estimator.passes.typed_forward import Rules, forward
from dnnmem.estimator.passes.typed_frees import free, free_casts, joined, move_bytes
from dnnmem.estimator.passes.typed_outputs import cast_outputs
from dnnmem.estimator.passes.typed_workspaces import transpose_workspaces
from dnnmem.estimator.trace import Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import storage_like


def autocast(trace: Trace, lower: str) -> Trace:
    """`trace`, recorded in float32, with its forward pass under autocast to `lower`."""
    return retyped(TypedDraft(trace, lower), Rules(policy=_policy, is_kept=_is_parameter, returns=makes_complex))


def retyped(d: TypedDraft, rules: Rules) -> Trace:
    """The step of `d` in the types that `rules` give it."""
    ops = [(k, op) for k, op in enumerate(d.ops) if op.phase is Phase.FORWARD]
    for k, op in ops:
        if k <= d.last:
            forward(d, rules, k, op)
    cast_outputs(d)
    for k, op in ops:
        if k > d.last:
            forward(d, rules, k, op)
    linked = links(d.ops)
    for group in groups(d.ops, linked):
        backward(d, group, linked.get(group[0]))
    free_casts(d)
    free(d)
    sizes = {i: d.nbytes(i) for i in d.types}
    for i in sizes:
        d.draft.storages[i] = storage_like(d.draft.storages[i], dtype=d.types[i])
    d.draft.resize({**sizes, **d.sizes})
    move_bytes(d)
    transpose_workspaces(d)
    return joined(d, d.draft.finish())


def _is_parameter(storage: Storage) -> bool:
    return storage.kind is Kind.PARAM


def makes_complex(d: TypedDraft, _: int, op: Op) -> bool:
    """Complex numbers are of float32: what was half is cast, and the result cast back as the program says."""
    return any(d.type(i) == "complex64" for i in (*op.reads, *op.writes))


def _policy(d: TypedDraft, k: int, op: Op) -> Policy:
    """That of the operator which the program called: some call others, which follow their type."""
    short, users = base(op.name), [d.ops[j] for i in op.writes for j in d.known[i].uses if k < j <= d.last]
    if short == "_log_softmax" and any(base(user.name).startswith("nll_loss") for user in users):
        return Policy.PROMOTE  # cross_entropy asks for the type that it was given
    near = [user for user in users if (user.module, user.source) == (op.module, op.source)]
    if short == "clone" and near and len(near) == len(users) and policy_of(near[0].name) is Policy.LOWER:
        return Policy.LOWER  # a product puts in order what has been cast
    if short == "add_" and any(d.trace.storages[i].kind is Kind.PARAM for i in op.reads):
        before = d.ops[k - 1]
        if policy_of(before.name) is Policy.LOWER and not {*before.writes}.isdisjoint(op.reads):
            return Policy.LOWER  # a linear layer's bias
    return policy_of(op.name)
