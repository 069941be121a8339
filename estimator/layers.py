"""Which module needs what: one row a module, with what is its own and not its children's, so that columns add up.

    column            whose                                          when
    param, optimizer  the module that owns the parameter             all of them
    grad              the module that owns the parameter             one a parameter, the largest
    activation        the module whose forward made the storage      when autograd keeps most, all modules together
    temp              the module whose op allocated the block        when this module holds most
    peak              owner; of a temporary inside an op, that op    at the peak of the step
    flops, seconds    the module that the op runs in                 over the step

>>> from dnnmem.estimator.trace import Event, Module, Op
>>> w = Storage(id=0, nbytes=8, kind=Kind.PARAM, module=("fc",), name="weight")
>>> op = Op(name="aten.mm", module=("fc",), reads=(0,), events=(Event(4, 0, -1), Event(-4, 0, -1)), flops=6)
>>> root, fc = Module(path=(), type="Net"), Module(path=("fc",), type="Linear")
>>> trace = Trace(ops=(op,), storages={0: w}, pinned=frozenset({0}), modules=(root, fc))
>>> [(row.module, row.type, row.param_bytes, row.temp_bytes, row.peak_bytes) for row in layers(trace)]
[('fc', 'Linear', 8, 4, 12)]
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from dnnmem.estimator.profile import Layer
from dnnmem.estimator.timeline import alive_at, timeline
from dnnmem.estimator.trace import Kind, Module, Op, Phase, Storage, Trace

Path = tuple[str, ...]

_NOT_MADE_BY_FORWARD = frozenset({Kind.PARAM, Kind.BUFFER, Kind.GRAD, Kind.OPTIMIZER, Kind.INPUT})
"""Kinds whose storages autograd may keep too, but that live without it."""


def layers(trace: Trace) -> tuple[Layer, ...]:
    """Rows in definition order, then pseudo-modules such as `<loss>` in order of appearance; idle modules are left out.

    Parameters, gradients and optimizer states are exact; flops of ops in `Phase.STEP` count as forward. Sums over the
    rows: `peak_bytes` is the peak of `timeline(trace)`, `activation_bytes` the most that autograd keeps at once.
    """
    owned = _owned_bytes(trace)
    activation = _saved_bytes(trace)
    temp = _temp_bytes(trace)
    peak = _peak_bytes(trace)
    flops, seconds = _work(trace.ops)
    busy = {op.module for op in trace.ops} | {path for _, path in owned}
    busy |= {path for column in (activation, temp, peak) for path, nbytes in column.items() if nbytes}
    return tuple(
        Layer(
            module=".".join(module.path),
            type=module.type,
            source=module.source,
            param_bytes=owned[Kind.PARAM, module.path],
            grad_bytes=owned[Kind.GRAD, module.path],
            optimizer_bytes=owned[Kind.OPTIMIZER, module.path],
            activation_bytes=activation[module.path],
            temp_bytes=temp[module.path],
            peak_bytes=peak[module.path],
            forward_flops=flops[module.path, False],
            backward_flops=flops[module.path, True],
            forward_seconds=seconds.get((module.path, False)),
            backward_seconds=seconds.get((module.path, True)),
        )
        for module in _modules(trace)
        if module.path in busy
    )


def saved_storages(trace: Trace) -> list[Storage]:
    """What forward ops made and autograd keeps for backward; not the parameters, buffers and inputs it keeps."""
    return [s for s in trace.storages.values() if s.saved and s.kind not in _NOT_MADE_BY_FORWARD]


def _modules(trace: Trace) -> list[Module]:
    """The model's modules, then the paths that only ops and storages name."""
    found = {module.path: module for module in reversed(trace.modules)}
    rows = dict.fromkeys(module.path for module in trace.modules)
    rows.update(dict.fromkeys(op.module for op in trace.ops))
    rows.update(dict.fromkeys(storage.module for storage in trace.storages.values()))
    return [found.get(path) or Module(path=path, type="") for path in rows]


def _owned_bytes(trace: Trace) -> Counter[tuple[Kind, Path]]:
    owned: Counter[tuple[Kind, Path]] = Counter()
    grads: dict[tuple[Path, str], int] = {}
    for storage in trace.storages.values():
        if storage.kind in {Kind.PARAM, Kind.OPTIMIZER}:
            owned[storage.kind, storage.module] += storage.nbytes
        elif storage.kind is Kind.GRAD:
            # Accumulation may make several storages for one gradient; without a name they cannot be told apart.
            key = (storage.module, storage.name or f"#{storage.id}")
            grads[key] = max(grads.get(key, 0), storage.nbytes)
    for (path, _), nbytes in grads.items():
        owned[Kind.GRAD, path] += nbytes
    return owned


def _saved_bytes(trace: Trace) -> Counter[Path]:
    """Bytes by module at the first moment of a forward pass when the saved storages alive sum to most."""
    saved = {storage.id: storage for storage in saved_storages(trace)}
    live = {i: saved[i].nbytes for i in sorted(trace.pinned & saved.keys())}
    total = sum(live.values())
    changes = [(trace.ops[index].phase, event) for index, event in trace.events() if event.storage in saved]
    most, best = total, 0
    for count, (phase, event) in enumerate(changes, start=1):
        total += event.nbytes
        if total > most and phase is Phase.FORWARD:
            most, best = total, count
    for _, event in changes[:best]:
        if event.nbytes:
            live[event.storage] = max(event.nbytes, 0)
    rows: Counter[Path] = Counter()
    for i, nbytes in live.items():
        rows[saved[i].module] += nbytes
    return rows


def _temp_bytes(trace: Trace) -> Counter[Path]:
    """The most bytes of temporaries that each module's ops hold at once; a storage counts until it is freed."""
    temps = {storage.id for storage in trace.storages.values() if storage.kind is Kind.TEMP}
    owner: dict[int, Path] = {}
    now: Counter[Path] = Counter()
    most: Counter[Path] = Counter()
    for index, event in trace.events():
        if event.storage >= 0 and event.storage not in temps:
            continue
        if event.nbytes > 0:
            path = owner[event.storage] = trace.ops[index].module
            now[path] += event.nbytes
            most[path] = max(most[path], now[path])
        elif event.nbytes and event.storage in owner:  # a pinned one that was there before the step is no op's
            now[owner.pop(event.storage)] += event.nbytes
    return most


def _peak_bytes(trace: Trace) -> Counter[Path]:
    curve = timeline(trace)
    at = int(curve.op[curve.peak])
    rows: Counter[Path] = Counter()
    for i, nbytes in alive_at(trace, curve.peak).items():
        rows[trace.storages[i].module if i >= 0 else trace.ops[at].module] += nbytes
    return rows


def _work(ops: Iterable[Op]) -> tuple[Counter[tuple[Path, bool]], dict[tuple[Path, bool], float]]:
    """Flops, and seconds where any op was timed, by module and by whether they fall in backward."""
    flops: Counter[tuple[Path, bool]] = Counter()
    seconds: defaultdict[tuple[Path, bool], float] = defaultdict(float)
    for op in ops:
        key = (op.module, op.phase is Phase.BACKWARD)
        flops[key] += op.flops
        if op.seconds is not None:
            seconds[key] += op.seconds
    return flops, dict(seconds)
