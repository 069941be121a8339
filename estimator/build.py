"""From a trace and a device's measurements to a `Profile`: the stack of bytes at the peak, which adds up exactly.

    parts at the trace's peak         what the device measured, or the allocator's replay         total
    param + grad + ... + input        allocated_bytes (the difference goes to `temp`, noted)
    temp     (named "workspace": workspace)
                                      reserved_bytes - requested = fragmentation, the allocator's rounding included
                                      context_bytes              = context
    `------------------------------------------------------------------------------------------'  sum, to the byte

>>> from dnnmem.estimator.trace import Kind, Storage
>>> w = Storage(id=0, nbytes=8, kind=Kind.PARAM)
>>> trace = Trace(ops=(), storages={0: w}, pinned=frozenset({0}))
>>> profile = build_profile(trace, Measurement(allocated_bytes=10, reserved_bytes=16), None)
>>> {part: nbytes for part, nbytes in profile.parts.items() if nbytes}, profile.total_bytes
({'param': 8, 'temp': 2, 'fragmentation': 6}, 16)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.alive import alive_groups
from dnnmem.estimator.layers import layers
from dnnmem.estimator.profile import PARTS, Measurement, Peak, Profile
from dnnmem.estimator.replay import replay_on
from dnnmem.estimator.timeline import Timeline, alive_at, timeline
from dnnmem.estimator.trace import Kind, Trace
from dnnmem.estimator.units import format_bytes

if TYPE_CHECKING:
    from dnnmem.estimator.device import Device
    from dnnmem.estimator.replay import ReplayResult

WORKSPACE = "workspace"
"""Name of the TEMP storages that stand for what libraries such as cuBLAS keep."""

_WORTH_SAYING = 0.001
"""Share of the peak below which memory inside kernels gets no note."""

_YIELD_ORDER = (
    "temp", "unknown", "activation", "grad", "comm", "input", "workspace", "buffer", "optimizer", "param",
)  # fmt: skip
"""Which parts give way, one after the other, when an unobserved run needs less than the trace says."""


def build_profile(trace: Trace, measurement: Measurement, device: Device | None) -> Profile:
    """The price of `trace`'s step, on `device` where there is one (decides `fits`, predicts what was not measured).

    Raises `TraceError` where the allocator's replay finds the trace broken; a checked trace raises nothing.
    """
    curve = timeline(trace)
    notes = list(trace.origin.notes)
    parts: dict[str, int | None] = dict.fromkeys(PARTS)
    parts.update(_tensor_parts(trace, curve, on_gpu=_is_gpu(trace, device)))
    predicted = replay_on(trace, device) if device is not None and measurement.reserved_bytes is None else None
    measured = measurement.allocated_bytes if measurement.requested_bytes is None else measurement.requested_bytes
    requested = _match(parts, measured, notes)
    allocated = measurement.allocated_bytes or (predicted.peak_allocated_bytes if predicted else requested)
    reserved = predicted.peak_reserved_bytes if predicted else measurement.reserved_bytes
    reserved = _at_least(reserved, allocated, notes)
    parts["fragmentation"] = None if reserved is None else reserved - requested
    parts["context"] = _context(measurement, device)
    total = sum(nbytes for nbytes in parts.values() if nbytes is not None)
    notes += [*_growth(measurement), *_retries(predicted)]
    return Profile(
        target=trace.origin.target,
        device=trace.origin.device,
        gpu=trace.origin.gpu or (device.name if device else None),
        versions=trace.origin.versions,
        batch=trace.batch,
        peak=_peak(trace, curve, allocated, reserved),
        parts=parts,
        total_bytes=total,
        usable_bytes=device.usable_bytes if device else None,
        fits=total <= device.usable_bytes if device else None,
        step_seconds=measurement.step_seconds,
        layers=layers(trace),
        alive=alive_groups(trace, curve.peak),
        timeline=curve,
        facts=measurement.facts,
        notes=tuple(notes),
    )


def _is_gpu(trace: Trace, device: Device | None) -> bool:
    return device is not None or trace.origin.gpu is not None or trace.origin.device in {"cuda", "virtual"}


def _tensor_parts(trace: Trace, curve: Timeline, *, on_gpu: bool) -> dict[str, int | None]:
    """Bytes by kind at the peak; the libraries' workspaces apart, None where no library can have one."""
    parts: dict[str, int | None] = {kind.value: int(line[curve.peak]) for kind, line in curve.kinds.items()}
    kept = sum(nbytes for i, nbytes in alive_at(trace, curve.peak).items() if _is_workspace(trace, i))
    parts["temp"] = (parts["temp"] or 0) - kept
    parts["workspace"] = kept if on_gpu or kept else None
    return parts


def _is_workspace(trace: Trace, i: int) -> bool:
    return i in trace.storages and trace.storages[i].kind is Kind.TEMP and trace.storages[i].name == WORKSPACE


def _match(parts: dict[str, int | None], measured: int | None, notes: list[str]) -> int:
    """Make the tensors' parts sum to what an unobserved run measured, and say what was moved; returns that sum."""
    explained = sum(nbytes for nbytes in parts.values() if nbytes is not None)
    if measured is None or measured == explained:
        return explained
    if measured > explained:
        parts["temp"] = (parts["temp"] or 0) + measured - explained
        if measured - explained > _WORTH_SAYING * measured:
            notes.append(
                f"A run that nothing observes peaks at {format_bytes(measured)}, "
                f"{format_bytes(measured - explained)} more than the recorded storages "
                "explain: memory inside kernels, counted in temp."
            )
        return measured
    less, excess, taken = format_bytes(explained - measured), explained - measured, []
    for part in _YIELD_ORDER:
        share = min(excess, parts[part] or 0)
        if share:
            parts[part] = (parts[part] or 0) - share
            excess -= share
            taken.append(f"{format_bytes(share)} from {part}")
    notes.append(
        f"A run that nothing observes peaks at {format_bytes(measured)}, {less} less than "
        f"the recorded storages at their peak; the stack leaves out {', '.join(taken)}; layer rows are as recorded."
    )
    return measured


def _at_least(reserved: int | None, allocated: int, notes: list[str]) -> int | None:
    """What the caching allocator holds, never less than what lives in it."""
    if reserved is None or reserved >= allocated:
        return reserved
    notes.append(
        f"The allocator was seen to hold {format_bytes(reserved)}, less than the {format_bytes(allocated)} alive "
        "at the peak; the larger number counts."
    )
    return allocated


def _context(measurement: Measurement, device: Device | None) -> int | None:
    if measurement.context_bytes is not None or device is None:
        return measurement.context_bytes
    return device.context_bytes


def _growth(measurement: Measurement) -> list[str]:
    if measurement.growth_bytes <= 0:
        return []
    more = format_bytes(measurement.growth_bytes)
    return [
        f"{more} more alive after the step than before: a leak if each step adds as much (a loss kept with its graph?)."
    ]


def _retries(predicted: ReplayResult | None) -> list[str]:
    if predicted is None or not predicted.retries:
        return []
    times = f"{predicted.retries} times in the first steps"
    return [f"Near the end of the GPU's memory the allocator gives back what it caches, {times}; each stalls the GPU."]


def _peak(trace: Trace, curve: Timeline, allocated: int, reserved: int | None) -> Peak:
    at = int(curve.op[curve.peak])
    op = trace.ops[at] if at >= 0 else None
    first = trace.ops[0].phase.value if trace.ops else "forward"
    return Peak(
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        phase=op.phase.value if op else first,
        module=".".join(op.module) if op else "",
        op=op.name if op else "",
        source=op.source if op else "",
    )
