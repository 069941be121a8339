"""Neighbouring element-wise ops, norms and row reductions become one kernel, as torch.compile or hand-fused code does.

    issued    mm | cast  pow  mean  rsqrt  mul  mul | mm | ...     | = products, attention, indices, other lanes
    fused     mm |            one kernel            | mm | ...

An op joins the kernel before it if it shares a storage with it. The kernel reads what comes from outside once, and
writes what somebody outside reads; what lives and dies inside is never in memory, so its events go too. A reduction
over rows of a batch (the gradient of a bias) walks the other way and stays a kernel of its own. The optimizer's ops
stay as they are: its kernels are `plan.optimizer.kernel`. Fused by hand, a softmax of scores takes four matrices at a
time; where their number is no multiple of that, its ops run one by one, in float32 (whose memory is left out).
`graphs` marks the step as issued at once, so that its ops cost the host nothing.

>>> from dnnmem.estimator.plan import Kernels, Plan
>>> from dnnmem.estimator.trace import Event, Kind, Op, Storage, Trace
>>> ids = {i: Storage(id=i, nbytes=800, kind=Kind.TEMP, shape=(10, 20), dtype="float32") for i in range(3)}
>>> double = Op(name="aten.mul.Tensor", reads=(0,), writes=(1,), events=(Event(800, 0, 1),), moved_bytes=1600)
>>> add = Op(name="aten.add_.Tensor", reads=(0, 1), writes=(0,), events=(Event(-800, 0, 1),), moved_bytes=2400)
>>> trace = Trace(ops=(double, add), storages={0: ids[0], 1: ids[1]}, pinned=frozenset({0}))
>>> fused = apply(trace, Plan(kernels=Kernels(fusion="pointwise")))
>>> [(op.name, op.moved_bytes) for op in fused.ops], fused.peak_bytes()
([('dnnmem.fused', 1600)], 800)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from dnnmem.estimator.block_list import Path, block_lists
from dnnmem.estimator.op_class import OpClass, kind_of
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.trace import Lane, Op, Phase, Storage, Trace
from dnnmem.estimator.work import GRAPHS

NAME = "dnnmem.fused"
"""Name of a kernel made of several ops."""
CAST = "dnnmem.cast"
"""Name of what a softmax costs besides where it is not fused: to float32, scaled, and back."""
_CASTS = (3, 4, 3)
"""Sizes of the scores that each of them moves."""
_MATRICES = 4
"""Matrices of scores that Megatron's softmax takes at a time (`is_kernel_available` of its fused_softmax.py)."""
_FUSIBLE = frozenset(
    {OpClass.STREAM, OpClass.EAGER, OpClass.NORM, OpClass.GROUP_NORM, OpClass.SOFTMAX, OpClass.REDUCTION}
)


def apply(trace: Trace, plan: Plan, cluster: object = None) -> Trace:  # noqa: ARG001  (all passes take the same)
    """`trace` with the kernels that `plan.kernels` names; the same object if it names nothing."""
    if plan.kernels.fusion != "none":
        trace = _fused(trace, plan.kernels.fusion)
    if plan.kernels.graphs:
        trace = replace(trace, origin=replace(trace.origin, versions={**trace.origin.versions, GRAPHS: "whole step"}))
    return trace


def _fused(trace: Trace, fusion: str) -> Trace:
    regions = _blocks(trace) if fusion == "blocks" else [()] * len(trace.ops)
    groups = _groups(trace.ops, trace.storages, regions, _stands_apart if fusion == "hand" else lambda *_: False)
    if fusion == "hand":
        groups = [part for group in groups for part in _by_hand(group, trace.storages)]
    readers: dict[int, set[int]] = {}
    for number, group in enumerate(groups):
        for op in group:
            for i in op.reads:
                readers.setdefault(i, set()).add(number)
    inner = {
        i
        for number, group in enumerate(groups)
        if len(group) > 1
        for i in _made(group) - trace.pinned
        if readers.get(i, set()) <= {number}
    }
    inner -= {i for group in groups if len(group) == 1 for i in group[0].writes}
    ops = tuple(_one(group, trace.storages, inner) if len(group) > 1 else group[0] for group in groups)
    ops = tuple(_without(op, inner) for op in ops)
    storages = {i: storage for i, storage in trace.storages.items() if i not in inner}
    return replace(trace, ops=ops, storages=storages)


def _blocks(trace: Trace) -> list[Path | None]:
    """The block of each op; None outside of all."""
    lists = block_lists(trace)
    of = {
        path: next((some.path(n) for some in lists if (n := some.index(path)) is not None), None)
        for path in {op.module for op in trace.ops}
    }
    return [of[op.module] for op in trace.ops]


def _stands_apart(op: Op, group: Sequence[Op]) -> bool:
    """Whether Megatron has a kernel of its own for `op`: a norm has, and a softmax takes only scale and mask along."""
    both = (op, *group)
    kinds = {kind_of(other.name) for other in both}
    return OpClass.NORM in kinds or (OpClass.SOFTMAX in kinds and any("dropout" in other.name for other in both))


def _by_hand(group: list[Op], storages: Mapping[int, Storage]) -> list[list[Op]]:
    """The group, or its ops one by one and in float32 where Megatron has no kernel for its softmax."""
    made = next((i for op in group if kind_of(op.name) is OpClass.SOFTMAX for i in op.writes if i in storages), None)
    if made is None or len(storages[made].shape) < 3 or prod(storages[made].shape[:-2]) % _MATRICES == 0:
        return [group]
    first, nbytes = group[0], storages[made].nbytes
    casts = [Op(name=CAST, module=first.module, phase=first.phase, moved_bytes=n * nbytes) for n in _CASTS]
    return [[op] for op in (*casts, *(replace(op, moved_bytes=2 * op.moved_bytes) for op in group))]


def _groups(
    ops: Sequence[Op],
    storages: Mapping[int, Storage],
    regions: Sequence[Path | None],
    stands_apart: Callable[[Op, Sequence[Op]], bool],
) -> list[list[Op]]:
    """Runs of ops that one kernel carries out, in order: of one region, None being no place for them."""
    groups: list[list[Op]] = []
    touched: set[int] = set()
    last: tuple[Phase, Path | None] | None = None
    for op, region in zip(ops, regions, strict=True):
        joins = region is not None and _is_fusible(op, storages)
        own = {*op.reads, *op.writes}
        follows = bool(touched) and last == (op.phase, region) and not own.isdisjoint(touched)
        if joins and follows and not stands_apart(op, groups[-1]):
            groups[-1].append(op)
            touched |= own
        else:
            groups.append([op])
            touched = own if joins else set()
        last = (op.phase, region)
    return groups


def _is_fusible(op: Op, storages: Mapping[int, Storage]) -> bool:
    kind = kind_of(op.name)
    if op.lane is not Lane.COMPUTE or op.phase is Phase.STEP or kind not in _FUSIBLE or op.flops or not op.writes:
        return False
    return kind is not OpClass.REDUCTION or not _walks_columns(op, storages)


def _walks_columns(op: Op, storages: Mapping[int, Storage]) -> bool:
    """True for a sum over the leading dimensions: its output keeps the rows' length."""
    read = max((storages[i] for i in op.reads if i in storages), key=lambda s: s.nbytes, default=None)
    made = max((storages[i] for i in op.writes if i in storages), key=lambda s: s.nbytes, default=None)
    if read is None or made is None or not made.shape or not read.shape:
        return False
    return 1 < made.shape[-1] == prod(made.shape) < prod(read.shape)


def _made(group: Iterable[Op]) -> set[int]:
    """Storages that come to be in these ops."""
    return {event.storage for op in group for event in op.events if event.nbytes > 0 and event.storage >= 0}


def _one(group: Sequence[Op], storages: Mapping[int, Storage], inner: set[int]) -> Op:
    """One kernel for all: reads what it has not made, writes what is wanted outside."""
    reads: dict[int, float] = {}
    writes: dict[int, float] = {}
    for op in group:
        share = _share(op, storages)
        for i in op.reads:
            if i not in writes and i in storages:
                reads[i] = max(reads.get(i, 0.0), share * storages[i].nbytes)
        for i in op.writes:
            if i in storages:
                writes[i] = max(writes.get(i, 0.0), share * storages[i].nbytes)
    return replace(
        group[0],
        name=NAME,
        reads=tuple(reads),
        writes=tuple(i for i in writes if i not in inner),
        events=tuple(event for op in group for event in op.events),
        moved_bytes=round(sum(reads.values()) + sum(nbytes for i, nbytes in writes.items() if i not in inner)),
        workspace_bytes=max(op.workspace_bytes for op in group),
        seconds=None,
    )


def _share(op: Op, storages: Mapping[int, Storage]) -> float:
    """Share of the storages that the op really touches: views reach only a part."""
    whole = sum(storages[i].nbytes for i in (*op.reads, *op.writes) if i in storages)
    return min(op.moved_bytes / whole, 1.0) if whole else 1.0


def _without(op: Op, inner: set[int]) -> Op:
    """`op` without the events of storages that are never in memory."""
    if inner.isdisjoint(event.storage for event in op.events):
        return op
    return replace(op, events=tuple(event for event in op.events if event.storage not in inner))
