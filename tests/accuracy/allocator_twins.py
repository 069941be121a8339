"""Random programs through PyTorch's own caching allocator and through the simulated one, on a virtual GPU.

    python tests/accuracy/allocator_twins.py SETTINGS COUNT SEED      settings as in PYTORCH_ALLOC_CONF

A program is a list of steps: allocate on one of three streams, free, let another stream use a block, empty the cache,
begin, end or release a private pool, capture a graph. After each one the refusal, the calls of the driver and all
statistics must be the same; after the last one the segments with their blocks. Prints JSON: programs, steps, refusals,
retries, and the first difference.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from itertools import count
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st

from dnnmem.estimator.allocator import CachingAllocator
from dnnmem.estimator.allocator_settings import parse_settings
from dnnmem.estimator.allocator_versions import rules_of
from dnnmem.estimator.driver_memory import Driver
from dnnmem.estimator.out_of_memory import OutOfMemoryError

MIB = 2**20
sizes = st.one_of(
    st.integers(1, 4096),
    st.integers(1, MIB),
    st.integers(MIB, 12 * MIB),
    st.integers(12 * MIB, 200 * MIB),
    st.sampled_from([512, 513, MIB, MIB + 1, 10 * MIB - 1, 10 * MIB, 20 * MIB, 64 * MIB]),
)
steps = st.one_of(
    st.tuples(st.just("alloc"), sizes, st.integers(0, 2)),
    st.tuples(st.just("alloc"), sizes, st.integers(0, 2)),
    st.tuples(st.just("alloc"), sizes, st.just(0)),
    st.tuples(st.just("free"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("free"), st.integers(0, 99), st.just(0)),
    st.tuples(st.just("use"), st.integers(0, 99), st.integers(0, 2)),
    st.tuples(
        st.sampled_from(["empty", "begin", "end", "release", "capture", "end_capture", "drop"]),
        st.just(0),
        st.integers(0, 2),
    ),
)
programs = st.lists(steps, min_size=40, max_size=120)
WATCHED = tuple(
    f"{name}.all.{which}"
    for name in (
        "allocation", "segment", "active", "inactive_split", "allocated_bytes", "requested_bytes", "active_bytes",
        "reserved_bytes", "inactive_split_bytes",
    )
    for which in ("current", "peak")
)  # fmt: skip
SPLIT_PEAKS = {"inactive_split.all.peak", "inactive_split_bytes.all.peak"}
"""Depend on the order in which PyTorch asks several streams' events: that of a hash table of their addresses."""
COUNTED = ("num_alloc_retries", "num_ooms")
RANDOM_STATE_BYTES = 8
DRIVER = {"segment_alloc", "segment_free", "segment_map", "segment_unmap"}


class Twins:
    """Both allocators, in the middle of one program."""

    def __init__(self, conf: str, streams: list[torch.cuda.Stream]) -> None:
        self.streams = streams
        self.tensors: list[tuple[torch.Tensor, int]] = []
        self.active: list[int] = []
        self.pools: list[torch.cuda.MemPool] = [torch.cuda.MemPool() for _ in range(3)]
        self.users = [0, 0, 0]
        self.capturing: int | None = None
        self.orderless = False
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.numbers: dict[int, int] = {}
        self.counter = count(len(self.pools))
        self.seen = 0
        torch.cuda.empty_cache()
        torch.cuda.memory._record_memory_history(None)
        torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=10**6)
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_stats()
        free, total = torch.cuda.mem_get_info()
        self.ranges: list[int] = []
        driver = Driver(capacity_bytes=free, next_address=self._address)
        self.ours = CachingAllocator(
            parse_settings(conf), device_bytes=total, driver=driver, rules=rules_of(torch.__version__)
        )
        for which in range(len(self.pools)):
            self.ours.private.hold(which)
        self.bases: list[tuple[int, int]] = []
        self.told: Counter[str] = Counter()

    def run(self, step: tuple[str, int, int]) -> None:
        """Do one step twice; raises AssertionError where the two differ."""
        action, value, which = step
        self.told[action] += 1
        self.orderless |= len(self.ours._waiting) > 1
        getattr(self, action)(value, which)
        self._compare(step)

    def alloc(self, nbytes: int, which: int) -> None:
        message = None
        try:
            with torch.cuda.stream(self.streams[which]):
                self.tensors.append((torch.empty(nbytes, dtype=torch.uint8, device="cuda"), 0))
        except torch.OutOfMemoryError as error:
            message = str(error)
        self._learn_addresses()
        try:
            address = self.ours.malloc(nbytes, self.streams[which].cuda_stream)
        except OutOfMemoryError as error:
            refused = error.message
        else:
            refused = None
        if refused is not None:
            assert message is not None, f"only ours runs out of memory: {refused}"
            assert _numbers(refused) == _numbers(message), f"{refused}\n{message}"
            self.told["refused"] += 1
        else:
            assert message is None, f"only PyTorch runs out of memory: {message}"
            theirs = self.tensors[-1][0].data_ptr()
            self.tensors[-1] = (self.tensors[-1][0], address)
            assert address == theirs, f"after ('alloc', {nbytes}, {which}): {address:#x} and {theirs:#x}"

    def free(self, index: int, _: int) -> None:
        if self.tensors:
            self.ours.free(self.tensors.pop(index % len(self.tensors))[1])

    def use(self, index: int, which: int) -> None:
        if self.tensors:
            index %= len(self.tensors)
            self.tensors[index][0].record_stream(self.streams[which])
            self.ours.record_stream(self.tensors[index][1], self.streams[which].cuda_stream)

    def empty(self, _: int, __: int) -> None:
        if not self.active and self.capturing is None:
            torch.cuda.empty_cache()
            self.ours.empty_cache()

    def begin(self, _: int, which: int) -> None:
        if not self.active and not self.users[which] and self.capturing is None:
            begin(self.pools[which].id)
            self.ours.private.begin(which)
            self.active.append(which)
            self.users[which] += 1

    def end(self, _: int, __: int) -> None:
        if self.active:
            which = self.active.pop()
            end(self.pools[which].id)
            self.ours.private.end(which)

    def release(self, _: int, which: int) -> None:
        if self.users[which] and which not in self.active:
            torch._C._cuda_releasePool(0, self.pools[which].id)
            self.ours.private.release(which)
            self.users[which] -= 1

    def capture(self, _: int, which: int) -> None:
        if which and self.capturing is None and not self.active and which not in self.graphs:
            graph = torch.cuda.CUDAGraph()
            known = len(self._history())
            try:
                with torch.cuda.stream(self.streams[which]):
                    graph.capture_begin(capture_error_mode="relaxed")
            except torch.OutOfMemoryError:
                del graph
                self._repeat(known)
                return
            try:
                self._repeat(known)
            except BaseException:
                with torch.cuda.stream(self.streams[which]):
                    graph.capture_end()
                del graph  # what the exception holds would outlive this program
                raise
            self.graphs[which] = graph
            self.numbers[which] = next(self.counter)
            self.ours.private.begin(self.numbers[which], self.streams[which].cuda_stream, captures=True)
            self.capturing = which

    def end_capture(self, _: int, __: int) -> None:
        if self.capturing is not None:
            with torch.cuda.stream(self.streams[self.capturing]):
                self.graphs[self.capturing].capture_end()
            self.ours.private.end(self.numbers[self.capturing])
            self.capturing = None

    def drop(self, _: int, which: int) -> None:
        if which in self.graphs and which != self.capturing:
            known = len(self._history())
            del self.graphs[which]
            self.ours.private.release(self.numbers[which])
            self._repeat(known)

    def finish(self) -> None:
        """Compare what is held, then give everything back."""
        mine = [
            (s.address, s.nbytes, s.stream, s.small, [(b.address, b.nbytes, b.requested_bytes) for b in s.blocks])
            for s in self.ours.segments()
        ]
        theirs = [
            (s["address"], s["total_size"], s["stream"], s["segment_type"] == "small",
             [(b["address"], b["size"], b["requested_size"] if b["state"] != "inactive" else 0) for b in s["blocks"]])
            for s in sorted(torch.cuda.memory_snapshot(), key=lambda s: s["address"])
        ]  # fmt: skip
        assert mine == theirs, "segments at the end differ"

    def close(self) -> None:
        """Leave nothing to the next program, whatever happened."""
        self.end(0, 0)
        self.end_capture(0, 0)
        self.graphs.clear()
        self.tensors.clear()
        for which, users in enumerate(self.users):
            for _ in range(users):
                torch._C._cuda_releasePool(0, self.pools[which].id)
        self.pools.clear()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def _address(self, _: int) -> int:
        """Where the real driver's next range is; a range of which nothing could be mapped is never told: give up."""
        return self.ranges.pop(0) if self.ranges else reject()

    def _history(self) -> list[dict[str, Any]]:
        trace: list[dict[str, Any]] = torch.cuda.memory._snapshot()["device_traces"][0]
        return trace

    def _repeat(self, known: int) -> None:
        """Let ours do what PyTorch did beyond the step: through 2.9 a graph keeps its random state on the device."""
        self._learn_addresses()
        for entry in self._history()[known:]:
            if entry["action"] == "alloc":
                address = self.ours.malloc(entry["size"], entry["stream"])
                assert address == entry["addr"], f"a graph's own: {address:#x} and {entry['addr']:#x}"
            elif entry["action"] == "free_requested":
                self.ours.free(entry["addr"])
            elif entry["action"] == "oom":
                with contextlib.suppress(OutOfMemoryError):
                    self.ours.malloc(RANDOM_STATE_BYTES, entry["stream"])

    def _learn_addresses(self) -> None:
        """Give our driver the addresses that the real one has just handed out."""
        history = self._history()
        for entry in history[self.seen :]:
            address = entry.get("addr", 0)
            if entry["action"] == "segment_alloc":
                self.ranges.append(address)
            elif entry["action"] == "segment_map" and not any(low <= address < high for low, high in self.bases):
                nbytes = self.ours.device_bytes * 9 // 8
                self.bases.append((address, address + nbytes))
                self.ranges.append(address)
        self.seen = len(history)

    def _compare(self, step: tuple[str, int, int]) -> None:
        theirs = torch.cuda.memory_stats()
        mine = self.ours.stats.as_dict()
        for name in WATCHED:
            if self.orderless and name in SPLIT_PEAKS:
                continue
            assert mine[name] == theirs[name], f"after {step}: {name} {mine[name]} and {theirs[name]}"
        for name in COUNTED:
            counted = theirs[name] - self.before[name]
            assert mine[name] == counted, f"after {step}: {name} {mine[name]} and {counted}"
        calls = [
            (entry["action"], entry["addr"], entry["size"], entry["stream"])
            for entry in self._history()
            if entry["action"] in DRIVER
        ]
        assert [tuple(event) for event in self.ours.segment_events] == calls, f"after {step}: calls of the driver"


def begin(pool: tuple[int, int]) -> None:
    """Let this thread allocate from a private pool, whatever the release calls it."""
    name = "_cuda_beginAllocateCurrentThreadToPool"
    getattr(torch._C, name if hasattr(torch._C, name) else "_cuda_beginAllocateToPool")(0, pool)


def end(pool: tuple[int, int]) -> None:
    """The end of `begin`."""
    name = "_cuda_endAllocateToPool"
    getattr(torch._C, name if hasattr(torch._C, name) else "_cuda_endAllocateCurrentStreamToPool")(0, pool)


def _numbers(message: str) -> list[str]:
    """What both messages say: asked for, in all, free, allocated and reserved."""
    words = message.replace("Including non-PyTorch memory", "\n").split(" If reserved")[0]
    parts = [part for part in words.split(". ") if "non-PyTorch" not in part and "memory in use" not in part]
    return [word for part in parts for word in part.split() if word[0].isdigit()]


def main(conf: str, examples: int, start: int) -> dict[str, Any]:
    told: Counter[str] = Counter()
    streams = [torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    torch.empty(1, device="cuda")
    fraction = parse_settings(conf).memory_fraction
    if fraction is not None:
        torch.cuda.set_per_process_memory_fraction(fraction)

    @seed(start)
    @settings(max_examples=examples, deadline=None, database=None, report_multiple_bugs=False, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(programs)
    def same(program: list[tuple[str, int, int]]) -> None:
        twins = Twins(conf, streams)
        try:
            for step in program:
                twins.run(step)
            twins.finish()
            told.update(twins.told)
            told["retries"] += twins.ours.stats.num_alloc_retries
            told["programs"] += 1
        finally:
            twins.close()

    try:
        same()
    except AssertionError as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        return {**told, "difference": str(error), "program": notes}
    return {**told, "difference": None}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
