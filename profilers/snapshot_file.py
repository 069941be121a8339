"""A trace as a memory snapshot, as `torch.cuda.memory._dump_snapshot` writes it: for memory_viz and others.

The step is played on the simulated allocator, which gives every block its address:

    set-up, first step    state only: what the segments hold when the history begins
    last step             the history: alloc, free_requested, free_completed, segment_alloc, segment_free

Frames say what a real one's say: the operator, the user's line, the modules from the inside out, the phase.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnnmem.estimator.allocator import CachingAllocator
from dnnmem.estimator.allocator_settings import AllocatorSettings
from dnnmem.estimator.errors import TraceError, UsageError
from dnnmem.estimator.segment import Segment
from dnnmem.estimator.trace import Event, Op, Storage, Trace
from dnnmem.estimator.whole_file import write_whole

MOST_EVENTS = 500_000
"""Events of a history that are written: about 100 MB. memory_viz draws fewer."""


def save_snapshot(trace: Trace, path: Path, settings: AllocatorSettings | None = None) -> int:
    """Write the last step's history and the segments at its end, at once or not at all; returns the events written.

    Raises `UsageError` if the file cannot be written, `TraceError` for a trace whose events do not fit together.
    """
    data, count = _snapshot(trace, settings or AllocatorSettings())
    try:
        write_whole(path, pickle.dumps(data, protocol=4))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot write the snapshot: {error.strerror or error}", hint="name a file in a writable folder"
        ) from error
    return count


def _snapshot(trace: Trace, settings: AllocatorSettings) -> tuple[dict[str, Any], int]:
    player = _Player(trace, settings)
    player.prepare()
    entries = player.history()
    return {
        "segments": [_segment(segment, player.frames_at) for segment in player.allocator.segments()],
        "device_traces": [entries[-MOST_EVENTS:]],
        "allocator_settings": {"expandable_segments": settings.expandable_segments},
        "external_annotations": [],
    }, min(len(entries), MOST_EVENTS)


class _Player:
    """Plays a trace and notes what a history would."""

    def __init__(self, trace: Trace, settings: AllocatorSettings) -> None:
        self.trace = trace.without_waits()
        self.allocator = CachingAllocator(settings)
        self.frames_at: dict[int, list[dict[str, Any]]] = {}
        self._addresses: dict[int, int] = {}
        self._time = 0
        self._lines: dict[tuple[str, str, int], dict[str, Any]] = {}
        self._types = {module.path: module.type for module in trace.modules}

    def prepare(self) -> None:
        """Set-up and a first step, whose events nobody hears of."""
        pinned = self.trace.pinned - {event.storage for event in self.trace.setup}
        held = (Event(self.trace.storages[i].nbytes, 0, i) for i in sorted(pinned) if self.trace.storages[i].nbytes)
        for event in (*self.trace.setup, *held):
            self._serve(event, self._owner_frames(event.storage))
        for _, event in self.trace.events():
            self._serve(event, self._owner_frames(event.storage))

    def history(self) -> list[dict[str, Any]]:
        """One more step, call by call."""
        entries: list[dict[str, Any]] = []
        for op in self.trace.ops:
            frames = self._op_frames(op)
            for event in op.events:
                entries += self._call(event, frames)
        return entries

    def _call(self, event: Event, frames: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        asked = len(self.allocator.segment_events)
        address = self._serve(event, frames)
        stream, nbytes = event.stream, abs(event.nbytes)
        for made in self.allocator.segment_events[asked:]:
            yield self._entry(made.action, made.address, made.nbytes, made.stream, frames)
        for action in ("alloc",) if event.nbytes > 0 else ("free_requested", "free_completed"):
            yield self._entry(action, address, nbytes, stream, frames)

    def _entry(
        self, action: str, address: int, nbytes: int, stream: int, frames: list[dict[str, Any]]
    ) -> dict[str, Any]:
        self._time += 1
        return {
            "action": action, "addr": address, "size": nbytes, "stream": stream, "time_us": self._time,
            "compile_context": "N/A", "user_metadata": "", "frames": frames,
        }  # fmt: skip

    def _serve(self, event: Event, frames: list[dict[str, Any]]) -> int:
        if event.nbytes > 0:
            address = self._addresses[event.storage] = self.allocator.malloc(event.nbytes, event.stream)
            self.frames_at[address] = frames
            return address
        if event.storage not in self._addresses:
            raise TraceError(f"storage {event.storage} is freed, but is not alive")
        address = self._addresses.pop(event.storage)
        self.allocator.free(address)
        self.frames_at.pop(address, None)
        return address

    def _op_frames(self, op: Op) -> list[dict[str, Any]]:
        return self._frames(op.name, op.source, op.module, op.phase.value)

    def _owner_frames(self, number: int) -> list[dict[str, Any]]:
        storage = self.trace.storages.get(number)
        return self._frames(_label(storage), "", storage.module, storage.kind.value) if storage else []

    def _frames(self, name: str, source: str, module: tuple[str, ...], last: str) -> list[dict[str, Any]]:
        file, _, line = source.rpartition(":")
        frames = [self._line(name, file, int(line) if line.isdecimal() else 0)]
        for depth in range(len(module), 0, -1):
            path = module[:depth]
            frames.append(self._line(f"{'.'.join(path)} ({self._types.get(path, '')})", "", 0))
        return [*frames, self._line(last, "", 0)]

    def _line(self, name: str, file: str, line: int) -> dict[str, Any]:
        """One frame; equal ones are one object, which a pickle writes once."""
        return self._lines.setdefault((name, file, line), {"name": name, "filename": file or "??", "line": line})


def _label(storage: Storage) -> str:
    return f"{storage.kind.value} {storage.name}".strip()


def _segment(segment: Segment, frames: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    held = sum(block.nbytes for block in segment.blocks if block.allocated)
    return {
        "device": 0, "address": segment.address, "total_size": segment.nbytes, "stream": segment.stream,
        "allocated_size": held, "active_size": held,
        "requested_size": sum(block.requested_bytes for block in segment.blocks),
        "segment_type": "small" if segment.small else "large", "segment_pool_id": (0, 0),
        "is_expandable": segment.expandable, "frames": [],
        "blocks": [
            {
                "address": block.address, "size": block.nbytes, "requested_size": block.requested_bytes,
                "state": "active_allocated" if block.allocated else "inactive",
                "frames": frames.get(block.address, []) if block.allocated else [],
            }
            for block in segment.blocks
        ],
    }  # fmt: skip
