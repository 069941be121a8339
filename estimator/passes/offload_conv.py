"""Offload of the inputs of convolutions alone: vDNN_conv (Rhu et al. 2016).

    forward    conv1 x   [to host: x]   relu ...   conv2 y   free x; [to host: y]  ...
    backward             [to device: x]   conv2' y   ...   conv1' x   relu' x      before the convolution behind it

Convolutions take long enough to hide a copy of their input. Whoever else saved it (the activation that made it) reads
the copy that came back. What the model itself is given stays: the training loop holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.draft import Draft, Life, back_uses, lives
from dnnmem.estimator.passes.offload_copies import leave, settle, travel
from dnnmem.estimator.trace import Phase, Trace

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """`trace` with what its convolutions save on the host. Raises `UnsupportedError` for a model without any."""
    del cluster
    draft, known = Draft(trace), lives(trace.ops)
    backward = [k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD]
    later = set(backward)
    convs = [k for k, op in enumerate(trace.ops) if op.phase is Phase.FORWARD and "convolution" in op.name]
    sent = _sent(trace, known, convs, later, plan.offload.min_bytes)
    if not sent:
        raise UnsupportedError(
            f"offload.activations conv finds no convolution in {trace.origin.target or 'this step'} that saves "
            f"{plan.offload.min_bytes} bytes or more of what was computed before it",
            hint="--set offload.activations=all, or a smaller offload.min_bytes",
        )
    ends = max(k for k, op in enumerate(trace.ops) if op.phase is Phase.FORWARD and op.module != ("<loss>",))
    begin = next(k for k in backward if trace.ops[k].module != ("<loss>",))
    held = {i: k for k, op in enumerate(trace.ops) for i in op.releases}
    order = list(sent.items())
    for n, (i, _) in enumerate(order):
        behind = order[n + 1][1] if n + 1 < len(order) else ends
        forward = [use for use in known[i].uses if use not in later]
        leave(draft, i, known[i], max(behind, *forward, held.get(i, -1)))
    for n, (i, k) in reversed(list(enumerate(order))):
        first = back_uses(trace.storages[i], known[i], later)[0]
        start = min(first, _back(trace, order[n + 1][1], backward)) if n + 1 < len(order) else min(first, begin)
        travel(draft, known, {i: k}, backward, start, files=plan.offload.files)
    settle(draft, known, sent)
    return draft.finish()


def _sent(trace: Trace, known: dict[int, Life], convs: list[int], later: set[int], least: int) -> dict[int, int]:
    """Storages that travel, in order, each with the convolution that takes it first."""
    found: dict[int, int] = {}
    for k in convs:
        for i in trace.ops[k].reads[:1]:
            storage, life = trace.storages[i], known[i]
            if i in found or i in trace.pinned or storage.nbytes < least or not storage.saved or life.made < 0:
                continue
            if life.made not in later and back_uses(storage, life, later):
                found[i] = k
    return found


def _back(trace: Trace, conv: int, backward: list[int]) -> int:
    """The first op of a convolution's backward pass."""
    module = trace.ops[conv].module
    return next((k for k in backward if trace.ops[k].module == module), backward[-1])
