from __future__ import annotations

import pickle

import pytest

from dnnmem.estimator.allocator import CachingAllocator
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.segment import BlockInfo, Segment
from dnnmem.profilers.snapshot import Call, Snapshot, load_snapshot
from dnnmem.profilers.snapshot_start import starting_segments

MIB = 2**20
LARGE, SMALL = 2**40, 2**41


def _entry(action: str, address: int, nbytes: int) -> dict:
    return {"action": action, "addr": address, "size": nbytes, "stream": 0, "time_us": 1, "frames": []}


def _data() -> dict:
    """A file as PyTorch writes it: 5 MiB live at the end, 4 MiB that came and went."""
    blocks = [
        {"address": LARGE, "size": 5 * MIB, "requested_size": 5 * MIB - 8, "state": "active_allocated", "frames": []},
        {"address": LARGE + 5 * MIB, "size": 15 * MIB, "requested_size": 4 * MIB, "state": "inactive", "frames": []},
    ]
    segment = {
        "device": 0, "address": LARGE, "total_size": 20 * MIB, "stream": 0, "segment_type": "large",
        "is_expandable": False, "blocks": blocks,
    }  # fmt: skip
    trace = [
        _entry("segment_alloc", LARGE, 20 * MIB),
        _entry("alloc", LARGE, 5 * MIB - 8),
        _entry("alloc", LARGE + 5 * MIB, 4 * MIB),
        _entry("free_requested", LARGE + 5 * MIB, 4 * MIB),
        _entry("free_completed", LARGE + 5 * MIB, 4 * MIB),
    ]
    return {"segments": [segment], "device_traces": [trace], "allocator_settings": {"max_split_size": -1}}


def _write(tmp_path, data) -> object:
    path = tmp_path / "memory.pickle"
    path.write_bytes(pickle.dumps(data))
    return path


def test_a_file_becomes_segments_and_calls(tmp_path):
    snapshot = load_snapshot(_write(tmp_path, _data()))
    assert snapshot.segments == (
        Segment(
            address=LARGE, nbytes=20 * MIB, stream=0, small=False, expandable=False,
            blocks=(
                BlockInfo(LARGE, 5 * MIB, 5 * MIB - 8, allocated=True),
                BlockInfo(LARGE + 5 * MIB, 15 * MIB, 0, allocated=False),
            ),
        ),
    )  # fmt: skip
    assert [call.action for call in snapshot.history[:2]] == ["segment_alloc", "alloc"]
    assert snapshot.history[1] == Call("alloc", LARGE, 5 * MIB - 8, 0)


def test_each_device_has_its_own_part(tmp_path):
    data = _data()
    assert load_snapshot(_write(tmp_path, data), device=1) == Snapshot(
        segments=(), history=(), settings=data["allocator_settings"], since=(2, 1), device=1, others=(0,)
    )


def test_a_history_from_process_start_starts_with_nothing(tmp_path):
    assert starting_segments(load_snapshot(_write(tmp_path, _data()))) == ()


def test_the_start_of_a_history_is_found_by_undoing_it():
    # GIVEN an allocator in use, with blocks longer than their requests and gaps between them
    allocator = CachingAllocator()
    kept = [allocator.malloc(n) for n in (5 * MIB, 3 * MIB, 7 * MIB + 512, 600, 4000, 30 * MIB)]
    allocator.free(kept.pop(1))
    allocator.free(kept.pop(2))
    start = allocator.segments()
    # WHEN a history goes on from there: some come, all of the first go, a segment comes and goes
    calls = []

    def call(action: str, address: int, nbytes: int) -> None:
        calls.append(Call(action, address, nbytes, 0))

    before = len(allocator.segment_events)
    for nbytes in (64 * MIB, 2 * MIB, 100):
        address = allocator.malloc(nbytes)
        call("alloc", address, nbytes)
        kept.append(address)
    sizes = {b.address: b.requested_bytes for s in allocator.segments() for b in s.blocks if b.allocated}
    calls[:0] = [Call(*event) for event in allocator.segment_events[before:]]
    for address in kept[:6]:
        call("free_requested", address, sizes[address])
        call("free_completed", address, sizes[address])
        allocator.free(address)
    before = len(allocator.segment_events)
    allocator.empty_cache()
    calls += [Call(*event) for event in allocator.segment_events[before:]]
    end = Snapshot(segments=allocator.segments(), history=tuple(calls), settings={})
    # THEN the end and the history give the start back, block by block
    assert starting_segments(end) == start


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda trace: trace.insert(1, _entry("alloc", LARGE + 9 * MIB, 8)),
            "the history has a gap: after call 1, alloc",
        ),
        (
            lambda trace: trace.append(_entry("free_completed", LARGE, 8)),
            "after call 5, free_completed .* is there later",
        ),
        (lambda trace: trace.append(_entry("segment_free", LARGE, 20 * MIB)), "segment_free .* is there later"),
    ],
)
def test_a_history_with_gaps_is_refused(tmp_path, change, message):
    data = _data()
    change(data["device_traces"][0])
    with pytest.raises(UsageError, match=message):
        starting_segments(load_snapshot(_write(tmp_path, data)))


class _Harmful:
    def __reduce__(self):
        return (print, ("it ran",))


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, capsys):
    with pytest.raises(UsageError, match=r"memory\.pickle is not read: it names builtins\.print") as caught:
        load_snapshot(_write(tmp_path, {"segments": [_Harmful()]}))
    assert capsys.readouterr().out == ""
    assert "_dump_snapshot" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a memory snapshot"),
        (b"\x80\x04nonsense", "is not a memory snapshot"),
        (pickle.dumps({"segments": []})[:-4], "is not a memory snapshot"),
        (pickle.dumps([1, 2]), "is not a memory snapshot"),
        (pickle.dumps({"segments": [{"device": 0}], "device_traces": []}), "is not a memory snapshot"),
        (pickle.dumps({"segments": 3, "device_traces": []}), "is not a memory snapshot"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "memory.pickle"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_snapshot(path)


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(UsageError, match=r"none\.pickle cannot be read: No such file"):
        load_snapshot(tmp_path / "none.pickle")
