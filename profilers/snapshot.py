"""What a file of `torch.cuda.memory._dump_snapshot` says: the segments at its end, and the history of calls before it.

The file is a pickle, and a pickle can run code; this reader accepts numbers, texts and containers only. A history
starts somewhere in a program's life, when recording was switched on or where its ring buffer begins. What was held at
that moment follows from the end, by undoing the history: `starting_segments`.

    segments then  --history-->  segments at the end          both are lists of `Segment`, as the simulated allocator's

>>> import io, pickle
>>> read_pickle(io.BytesIO(pickle.dumps({"segments": [], "device_traces": [[]]})), "empty.pickle")
{'segments': [], 'device_traces': [[]]}
"""

from __future__ import annotations

import gc
import pickle
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from dnnmem.estimator.allocator_settings import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    AllocatorSettings,
    block_bytes,
)
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
    reserved: dict[int, int] = defaultdict(int)
    for entry in data["segments"]:
        reserved[entry["device"]] += entry["total_size"]
    counts = {number: len(trace) for number, trace in enumerate(data["device_traces"])}
    return max({*reserved, *counts, 0}, key=lambda d: (counts.get(d, 0), reserved.get(d, 0), -d))


def _device(data: Mapping[str, Any], device: int) -> Snapshot:
    traces = data["device_traces"]
    entries = [e for e in (traces[device] if device < len(traces) else ()) if e["action"] != "snapshot"]
    segments = [entry for entry in data["segments"] if entry["device"] == device]
    return Snapshot(
        segments=tuple(sorted(map(_segment, segments), key=lambda s: s.address)),
        history=tuple(
            Call(str(entry["action"]), int(entry.get("addr", 0)), int(entry["size"]), int(entry["stream"]))
            for entry in entries
        ),
        settings=data.get("allocator_settings", {}),
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


def held_before(snapshot: Snapshot) -> list[tuple[Call, Frames]]:
    """What the program held before the first call of the history, as calls that allocate it, with frames if known.

    Found by undoing the history from its end. What it cannot explain, since calls are missing, is left as it is.
    """
    streams = {s.address: s.stream for s in snapshot.segments}
    live: dict[int, tuple[int, int, Frames]] = {}
    for segment in snapshot.segments:
        for block in segment.blocks:
            if block.allocated:
                frames = snapshot.block_frames.get(block.address, ())
                live[block.address] = (block.requested_bytes, streams[segment.address], frames)
    for call in reversed(snapshot.history):
        if call.action == "alloc":
            live.pop(call.address, None)
        elif call.action in ("free_completed", "free") and call.address not in live:
            live[call.address] = (call.nbytes, call.stream, ())
    return [(Call("alloc", address, n, stream), frames) for address, (n, stream, frames) in sorted(live.items())]


def starting_segments(snapshot: Snapshot) -> tuple[Segment, ...]:
    """What the allocator held before the first call of the history, with the default settings and on plain segments.

    A block of the large pool is longer than its rounded request by up to 1 MiB where the rest was not worth splitting;
    no free block of that pool is so short, hence a gap of up to 1 MiB behind a live block belongs to it.

    Raises `UsageError` if the history disagrees with the segments (calls are missing), or for other settings.
    """
    if any(segment.expandable for segment in snapshot.segments) or snapshot.settings.get("max_split_size", -1) != -1:
        raise UsageError("the snapshot was taken with expandable segments or max_split_size_mb; its start is not known")
    sizes = {segment.address: (segment.nbytes, segment.stream) for segment in snapshot.segments}
    live = {b.address: b.requested_bytes for segment in snapshot.segments for b in segment.blocks if b.allocated}
    for index in range(len(snapshot.history) - 1, -1, -1):
        call = snapshot.history[index]
        known: dict[int, Any] = sizes if call.action.startswith("segment") else live
        if call.action in ("alloc", "segment_alloc"):
            if known.pop(call.address, None) is None:
                raise _gap(index, call, "is not there later on")
        elif call.action in ("free_completed", "segment_free"):
            if call.address in known:
                raise _gap(index, call, "is there later on, though nothing allocated it again")
            known[call.address] = (call.nbytes, call.stream) if known is sizes else call.nbytes
    addresses = sorted(live)
    return tuple(_tile(start, *sizes[start], addresses, live) for start in sorted(sizes))


def _gap(index: int, call: Call, what: str) -> UsageError:
    return UsageError(
        f"the history has a gap: after call {index}, {call.action} of {call.address:#x}, the block {what}"
    )


def _tile(start: int, nbytes: int, stream: int, addresses: list[int], live: Mapping[int, int]) -> Segment:
    """A segment with the blocks that its live ones imply; `addresses` are those of all live blocks, sorted."""
    small = nbytes == SMALL_SEGMENT_BYTES
    inside = addresses[bisect_left(addresses, start) : bisect_left(addresses, start + nbytes)]
    blocks: list[BlockInfo] = []
    at = start
    for index, address in enumerate(inside):
        end = inside[index + 1] if index + 1 < len(inside) else start + nbytes
        if address > at:
            blocks.append(BlockInfo(at, address - at, 0, allocated=False))
        size = block_bytes(live[address], AllocatorSettings())
        rest = end - address - size
        if rest < MIN_BLOCK_BYTES if small else rest <= SMALL_BYTES:
            size += rest
        blocks.append(BlockInfo(address, size, live[address], allocated=True))
        at = address + size
    if at < start + nbytes:
        blocks.append(BlockInfo(at, start + nbytes - at, 0, allocated=False))
    return Segment(address=start, nbytes=nbytes, stream=stream, small=small, expandable=False, blocks=tuple(blocks))


def _segment(entry: Mapping[str, Any]) -> Segment:
    return Segment(
        address=entry["address"],
        nbytes=entry["total_size"],
        stream=entry["stream"],
        small=entry["segment_type"] == "small",
        expandable=entry.get("is_expandable", False),
        blocks=tuple(_blocks(entry["address"], entry["blocks"])),
    )


def _blocks(start: int, entries: Iterable[Mapping[str, Any]]) -> Iterable[BlockInfo]:
    """The blocks of a segment; those of old releases have no address, but they tile it."""
    at = start
    for entry in entries:
        live = entry["state"] != "inactive"
        yield BlockInfo(at, entry["size"], entry.get("requested_size", entry["size"]) if live else 0, live)
        at += entry["size"]
