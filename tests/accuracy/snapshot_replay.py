"""Whether the simulated allocator does what a snapshot's history says: every address and every call of the driver.

    python -m tests.accuracy.snapshot_replay FILE...      a line a file and GPU

The driver refuses where the history shows that it did: where the calls that follow give memory back first. A run of
segments given back with no request for one behind it is `torch.cuda.empty_cache`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dnnmem.estimator.allocator import CachingAllocator
from dnnmem.estimator.allocator_settings import AllocatorSettings
from dnnmem.estimator.allocator_versions import rules_of
from dnnmem.estimator.driver_memory import Driver
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.out_of_memory import OutOfMemoryError
from dnnmem.profilers.snapshot import Call, Snapshot, load_snapshot
from dnnmem.profilers.snapshot_start import late_before, pools_of, settings_of, starting_segments

MOST_GPUS = 8
GIVES, TAKES = ("segment_free", "segment_unmap"), ("segment_alloc", "segment_map")


class _Replay:
    """A history, half played."""

    def __init__(self, snapshot: Snapshot, settings: AllocatorSettings, device_bytes: int | None) -> None:
        self.calls = snapshot.history
        self.pools = pools_of(snapshot)
        self.at = 0
        self.driver = _Recorded(self)
        rules = rules_of(f"{snapshot.since[0]}.{snapshot.since[1]}")
        self.ours = CachingAllocator(settings, device_bytes=device_bytes, driver=self.driver, rules=rules)
        self.ours.adopt(starting_segments(snapshot, settings))
        for address in late_before(snapshot):
            self.ours.request_free(address)
        self.known: set[int] = set()
        self.expected = [c for c in self.calls if c.action in (*GIVES, *TAKES)]
        self.done = 0

    def run(self) -> None:
        while self.at < len(self.calls):
            call = self.calls[self.at]
            if call.action in ("alloc", *GIVES, *TAKES, "oom"):
                self._request()
            elif call.action == "free_requested":
                self.ours.request_free(call.address)
            elif call.action == "free_completed":
                self.ours.complete_free(call.address)
            self.at += 1
            made = self.ours.segment_events
            assert made == self.expected[: self.done], f"call {self.at - 1}, {call}: {made[-3:]}"

    def _request(self) -> None:
        """All up to the request that the calls of the driver are for."""
        first = self.at
        while self.calls[self.at].action in GIVES and self.at + 1 < len(self.calls):
            if self.calls[self.at + 1].action not in (*GIVES, *TAKES, "oom"):
                self.done += self.at + 1 - first
                return self.ours.empty_cache()
            self.at += 1
        while self.calls[self.at].action in (*GIVES, *TAKES) and self.at + 1 < len(self.calls):
            self.at += 1
        call = self.calls[self.at]
        if call.action in (*GIVES, *TAKES):
            self.done += self.at + 1 - first
            return self.ours.empty_cache()
        self.done += self.at - first
        pool = self.pools[self.at]
        self.ours.private.active = [(pool, None)] if pool else []
        if pool:
            self.ours.private.at(pool).users = 1
        try:
            address = self.ours.malloc(call.nbytes, call.stream)
        except OutOfMemoryError:
            assert call.action == "oom", f"call {self.at}, {call}: out of memory"
        else:
            assert address == call.address, f"call {self.at}, {call}: {address:#x}"
        return None


class _Recorded(Driver):
    """Gives what the history says that the driver gave."""

    def __init__(self, replay: _Replay) -> None:
        super().__init__()
        self.replay = replay

    def _coming(self) -> list[Call]:
        """The calls of the driver up to the request, of which ours has made none yet."""
        made = len(self.replay.ours.segment_events)
        return self.replay.expected[made : self.replay.done]

    def address(self, nbytes: int) -> int:
        taken = next((call for call in self._coming() if call.action in TAKES), None)
        return taken.address if taken else super().address(nbytes)

    def charge(self, nbytes: int) -> bool:
        given = [call.action in TAKES and call.nbytes == nbytes for call in self._coming()[:1]] == [True]
        self.used_bytes += nbytes * given
        return given


def difference(
    snapshot: Snapshot, settings: AllocatorSettings | None = None, device_bytes: int | None = None
) -> str | None:
    """Where the replay leaves the history, or ends elsewhere; None if nowhere."""
    replay = None
    try:
        replay = _Replay(snapshot, settings or settings_of(snapshot), device_bytes)
        replay.run()
    except (AssertionError, DnnmemError) as error:
        return f"{type(error).__name__}: {error}"
    mine, theirs = replay.ours.segments(), snapshot.segments
    return None if mine == theirs else next(
        (f"at the end {a} and {b}" for a, b in zip(mine, theirs, strict=False) if a != b), "segments at the end"
    )  # fmt: skip


def main(paths: list[str]) -> int:
    worst = 0
    for path in paths:
        for device in range(MOST_GPUS):
            snapshot = load_snapshot(Path(path), device)
            if snapshot.history or snapshot.segments:
                found = difference(snapshot)
                print(f"{path} GPU {device}: {len(snapshot.history)} calls; difference: {found}")
                worst |= found is not None
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
