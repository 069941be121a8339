"""What a file of `torch.cuda.memory._dump_snapshot` says: the segments at its end, and the history of calls before it.

The file is a pickle, and a pickle can run code; this reader accepts numbers, texts and containers only. Releases of
PyTorch since 2.0 write more and more into it; what an older one leaves out is empty here.

>>> import io, pickle
>>> read_pickle(io.BytesIO(pickle.dumps({"segments": [], "device_traces": [[]]})), "empty.pickle")
{'segments': [], 'device_traces': [[]]}
"""

from __future__ import annotations

import gc
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from dnnmem.estimator.allocator_versions import Release
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.segment import BlockInfo, Segment
from dnnmem.estimator.units import format_bytes

_HINT = "write one with torch.cuda.memory._dump_snapshot(file)"


Frames = Sequence[Mapping[str, Any]]
"""A stack: `name`, `filename` and `line` of each frame."""

MOST_BYTES = 2**30
"""Largest file that is read: its data take about ten times as much memory as the file."""


class Call(NamedTuple):
    """One entry of the history."""

    action: str
    """`alloc`, `free_requested`, `free_completed`, `segment_alloc`, `segment_free`, `oom`, ..."""
    address: int
    """First byte."""
    nbytes: int
    """Requested bytes of a block, bytes of a segment."""
    stream: int
    """Stream it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One device's part of a snapshot."""

    segments: tuple[Segment, ...]
    """What the allocator held when it was written, by address."""
    history: tuple[Call, ...]
    """What happened before, oldest first; empty if nothing was recorded."""
    settings: Mapping[str, Any]
    """`allocator_settings` of the file; empty in files of old releases."""
    frames: tuple[Frames, ...] = ()
    """Stack frames of each call of the history, innermost first, as the file has them."""
    block_frames: Mapping[int, Frames] = field(default_factory=dict)
    """Those of the blocks that live at the end, by address, where they were recorded."""
    pools: tuple[int, ...] = ()
    """Private pool of each call of the history, 0 for the common one; empty in files that do not say it."""
    since: Release = (2, 0)
    """The oldest release that writes such files, as far as the file tells."""
    device: int = 0
    """Number of the GPU."""
    others: tuple[int, ...] = ()
    """Numbers of the other GPUs of which the file tells something."""


class _PlainUnpickler(pickle.Unpickler):
    """Builds numbers, texts and containers; a pickle that names any class or function is refused."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise UsageError(f"it names {module_name}.{global_name}, and a memory snapshot names nothing")

    def persistent_load(self, pid: object) -> NoReturn:
        raise UsageError(f"it refers to {pid!r} outside of itself")


def read_pickle(file: BinaryIO, name: str) -> Any:
    """Plain data from a pickle. Raises `UsageError`, with `name` in it, if it is damaged or holds anything else."""
    collects = gc.isenabled()
    gc.disable()  # a million new containers, none of them garbage
    try:
        return _PlainUnpickler(file).load()
    except UsageError as error:
        raise UsageError(f"{name} is not read: {error.message}", hint=_HINT) from None
    except Exception as error:  # noqa: BLE001  (a damaged pickle raises almost anything)
        raise UsageError(f"{name} is not a memory snapshot: {error or type(error).__name__}", hint=_HINT) from None
    finally:
        if collects:
            gc.enable()


def load_snapshot(path: Path, device: int | None = 0) -> Snapshot:
    """One device of a snapshot file; None for the one that has most to tell.

    Raises `UsageError` if the file is missing, too large, damaged, or not a snapshot.
    """
    try:
        nbytes = path.stat().st_size
        if nbytes > MOST_BYTES:
            raise UsageError(
                f"{path} has {format_bytes(nbytes)}; at most {format_bytes(MOST_BYTES)} are read",
                hint="record less: _record_memory_history(max_entries=100000, stacks='python')",
            )
        with path.open("rb") as file:
            data = read_pickle(file, str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return _device(data, _busiest(data) if device is None else device)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        said = f"{type(error).__name__}: {error}"
        raise UsageError(f"{path} is not a memory snapshot as PyTorch writes it: {said}", hint=_HINT) from None


def _busiest(data: Mapping[str, Any]) -> int:
    """The device with the longest history, then with the most memory."""
    reserved = _reserved(data)
    counts = {number: len(trace) for number, trace in enumerate(data.get("device_traces", ()))}
    return max({*reserved, *counts, 0}, key=lambda d: (counts.get(d, 0), reserved.get(d, 0), -d))


def _reserved(data: Mapping[str, Any]) -> dict[int, int]:
    """Bytes of segments by device."""
    reserved: dict[int, int] = defaultdict(int)
    for entry in data["segments"]:
        reserved[entry["device"]] += entry["total_size"]
    return reserved


def _device(data: Mapping[str, Any], device: int) -> Snapshot:
    traces = data.get("device_traces", ())
    entries = [e for e in (traces[device] if device < len(traces) else ()) if e["action"] != "snapshot"]
    segments = [entry for entry in data["segments"] if entry["device"] == device]
    return Snapshot(
        segments=tuple(sorted(map(_segment, segments), key=lambda s: s.address)),
        history=tuple(
            Call(str(entry["action"]), int(entry.get("addr", 0)), int(entry["size"]), int(entry["stream"]))
            for entry in entries
        ),
        settings=data.get("allocator_settings", {}),
        pools=tuple(_pool(entry["pool_id"]) for entry in entries) if entries and "pool_id" in entries[0] else (),
        since=_since(data, traces),
        device=device,
        others=tuple(sorted((_reserved(data).keys() | {d for d, trace in enumerate(traces) if trace}) - {device})),
        frames=tuple(entry.get("frames", ()) for entry in entries),
        block_frames=dict(_frames(segments)),
    )


def _frames(segments: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Frames]]:
    for segment in segments:
        at = segment["address"]
        for block in segment["blocks"]:
            if block.get("frames"):
                yield at, block["frames"]
            elif block.get("history"):  # before torch 2.1
                yield at, block["history"][0].get("frames", ())
            at += block["size"]


def _segment(entry: Mapping[str, Any]) -> Segment:
    return Segment(
        address=entry["address"],
        nbytes=entry["total_size"],
        stream=entry["stream"],
        small=entry["segment_type"] == "small",
        expandable=entry.get("is_expandable", False),
        blocks=tuple(_blocks(entry["address"], entry["blocks"])),
        pool=_pool(entry.get("segment_pool_id", (0, 0))),
    )


def _pool(pair: Sequence[int]) -> int:
    """A pool's two numbers, of which a graph's own has the second and one that a program made has the first, as one."""
    first, second = pair
    return int(first) << 32 | int(second)


def _since(data: Mapping[str, Any], traces: Sequence[Sequence[Mapping[str, Any]]]) -> Release:
    """The release that wrote the file names itself nowhere; later ones write more."""
    entry = next((trace[0] for trace in traces if trace), {})
    settings = data.get("allocator_settings", {})
    if "pool_id" in entry or "host_segments" in data:
        return (2, 14)
    if "graph_capture_record_stream_reuse" in settings:
        return (2, 9)
    if "compile_context" in entry:
        return (2, 8)
    return (2, 1) if "allocator_settings" in data else (2, 0)


def _blocks(start: int, entries: Iterable[Mapping[str, Any]]) -> Iterable[BlockInfo]:
    """The blocks of a segment; those of old releases have no address, but they tile it."""
    at = start
    for entry in entries:
        live = entry["state"] != "inactive"
        yield BlockInfo(at, entry["size"], entry.get("requested_size", entry["size"]) if live else 0, live)
        at += entry["size"]
