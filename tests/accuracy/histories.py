"""Allocator histories of real GPUs, cut from public memory snapshots to what a replay needs.

A file holds the segments before the first call, the calls, and the segments after the last one, without stack frames.
To make one: `python tests/accuracy/histories.py snapshot.pickle out.json.gz "where it comes from"`.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dnnmem.estimator.segment import BlockInfo, Segment
from dnnmem.profilers.snapshot import Call, load_snapshot
from dnnmem.profilers.snapshot_start import starting_segments

ACTIONS = ("alloc", "free_completed", "segment_alloc", "segment_free")
FOLDER = Path(__file__).parent / "data" / "histories"


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    source: str
    start: tuple[Segment, ...]
    calls: tuple[Call, ...]
    end: tuple[Segment, ...]


def read(path: Path) -> History:
    data = json.loads(gzip.decompress(path.read_bytes()))
    calls = tuple(
        Call(ACTIONS[a], address, nbytes, stream) for a, address, nbytes, stream in zip(*data["calls"], strict=True)
    )
    return History(source=data["source"], start=_unpack(data["start"]), calls=calls, end=_unpack(data["end"]))


def write(path: Path, history: History) -> None:
    rows = [(ACTIONS.index(c.action), c.address, c.nbytes, c.stream) for c in history.calls]
    data = {
        "source": history.source,
        "start": _pack(history.start),
        "calls": list(zip(*rows, strict=True)),
        "end": _pack(history.end),
    }
    path.write_bytes(gzip.compress(json.dumps(data, separators=(",", ":")).encode(), 9, mtime=0))


def _pack(segments: Iterable[Segment]) -> list[list[object]]:
    return [[s.address, s.nbytes, s.stream, s.small, [b[1:] for b in s.blocks]] for s in segments]


def _unpack(rows: Iterable[tuple[int, int, int, bool, list[tuple[int, int, bool]]]]) -> tuple[Segment, ...]:
    segments = []
    for address, nbytes, stream, small, sizes in rows:
        at, blocks = address, []
        for size, requested, allocated in sizes:
            blocks.append(BlockInfo(at, size, requested, allocated))
            at += size
        segments.append(
            Segment(address=address, nbytes=nbytes, stream=stream, small=small, expandable=False, blocks=tuple(blocks))
        )
    return tuple(segments)


def main(snapshot: str, out: str, source: str) -> None:
    taken = load_snapshot(Path(snapshot))
    calls = tuple(call for call in taken.history if call.action in ACTIONS)
    write(Path(out), History(source=source, start=starting_segments(taken), calls=calls, end=taken.segments))


if __name__ == "__main__":
    main(*sys.argv[1:])
