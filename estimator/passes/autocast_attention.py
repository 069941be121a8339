"""Attention in half precision: which kernel runs, what it keeps beside its output and what it needs inside.

    float32      efficient   (out, logarithms of sums in rows of 32, seed, offset)     its own order: seed first
    half         flash       (out, logarithms, seed and offset, nothing)               no mask
                 cuDNN       (out, logarithms, seed, offset)                           Hopper and data-centre Blackwell

Follows torch's `select_sdp_backend`, as far as a trace tells what it asks; the profiler's rules know the rest.
"""

from __future__ import annotations

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.passes.draft import Draft
from dnnmem.estimator.trace import Event, Op, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

_EFFICIENT = "aten._scaled_dot_product_efficient_attention"
_FLOAT = 4


def half_kernel(trace: Trace, op: Op) -> str:
    """`flash`, `cudnn` or `efficient`: what runs attention `op` of a float32 step in half precision."""
    out = trace.storages[op.writes[0]]
    if len(out.shape) != 4 or not op.name.startswith(_EFFICIENT):
        return ""
    drops = any("dropout" in other.name for other in trace.ops)  # its share must be n/16 for cuDNN: unlikely
    if _prefers_cudnn(trace) and out.shape[-1] <= 128 and out.shape[-1] % 8 == 0 and not drops:
        return "cudnn"
    return "efficient" if mask_of(trace, op) is not None else "flash"


def mask_of(trace: Trace, op: Op) -> int | None:
    """What is added to the scores: it ends in the length of the keys, and is no query, key or value."""
    out = trace.storages[op.writes[0]]
    for i in op.reads:
        s = trace.storages[i]
        if (
            len(s.shape) == 4
            and s.shape != out.shape
            and s.shape[1] in {1, out.shape[1]}
            and s.shape[-1] != out.shape[-1]
        ):
            return i
    return None


def forward(draft: Draft, k: int, kernel: str) -> dict[int, int]:
    """Make op `k` the forward kernel called `kernel`; returns new sizes of statistics, whose frees are elsewhere."""
    op, storages = draft.ops[k], draft.storages
    out, logarithms, seed, offset = op.writes
    b, h, t, _ = storages[out].shape
    shape = (b, h, t, 1) if kernel == "cudnn" else (b, h, t)
    storages[logarithms] = storage_like(storages[logarithms], shape=shape, nbytes=b * h * t * _FLOAT)
    if kernel == "flash":
        storages[seed] = storage_like(storages[seed], shape=(2,), dtype="uint64", nbytes=16)
    first = [Event(storages[i].nbytes, 0, i) for i in (out, logarithms, seed, offset)]
    rest = [e for e in op.events if e.storage >= 0 and not (e.storage in op.writes and e.nbytes > 0)]
    name = f"aten._scaled_dot_product_{kernel}_attention.default"
    draft.ops[k] = op_like(op, name=name, events=(*first, *rest))
    return {i: storages[i].nbytes for i in (logarithms, seed)}


def backward(draft: Draft, k: int, kernel: str, saved: tuple[Storage, Storage]) -> None:
    """Make op `k` the backward kernel; `saved`: output of the forward one, and keys (or what holds them)."""
    op, (b, h, t, d) = draft.ops[k], saved[0].shape
    if kernel == "cudnn":
        sizes = [b * h * t * (d + 1) * _FLOAT]
    elif kernel == "flash":
        rows = b * h * -(-t // 128) * 128 * _FLOAT
        sizes = [rows, rows * (-(-d // 32) * 32 if d <= 128 else -(-d // 64) * 64)]
    else:
        return
    made = [Event(n, 0, -1 - at) for at, n in enumerate(sizes)]
    gone = [Event(-e.nbytes, 0, e.storage) for e in reversed(made)]
    outputs = [e for e in op.events if e.storage >= 0 and e.nbytes > 0]
    frees = [e for e in op.events if e.storage >= 0 and e.nbytes < 0]
    name = f"aten._scaled_dot_product_{kernel}_attention_backward.default"
    draft.ops[k] = op_like(op, name=name, events=(*outputs, *made, *gone, *frees))


def _prefers_cudnn(trace: Trace) -> bool:
    """`check_prefer_cudnn_attention`, with the cuDNN that torch's wheels bring."""
    version = trace.origin.versions.get("torch", "").partition("+")[0].split(".")
    release = tuple(int(n) for n in version[:2] if n.isdigit())
    try:
        capability = find_device(trace.origin.gpu or "").compute_capability
    except DnnmemError:
        return False
    return capability in {"9.0", "10.0"} and (release == (2, 9) or release >= (2, 11))
