"""How PyTorch's CUDA caching allocator is configured, and the sizes it rounds to: every constant of it is here.

The allocator rounds a request to a *block* size, picks one of two pools by it, and asks the driver for a *segment* when
no cached block fits. The numbers are those of PyTorch's `c10/core/AllocatorConfig.h`, and in earlier releases of
`c10/cuda/CUDACachingAllocator.cpp`; newer releases have `large_segment_size_mb` as a setting too.

    request      block                       pool    segment
    1 B          512 B                       small   2 MiB
    1 MiB        1 MiB                       small   2 MiB
    1 MiB + 1    1 MiB + 512 B               large   20 MiB
    10 MiB       10 MiB                      large   10 MiB, and above that a multiple of 2 MiB

>>> settings = parse_settings("max_split_size_mb:128, roundup_power2_divisions:4")
>>> settings.max_split_bytes, block_bytes(1200 * 1024, settings), segment_bytes(1200 * 1024, settings)
(134217728, 1310720, 20971520)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dnnmem.estimator.errors import UsageError

MIB = 2**20
MIN_BLOCK_BYTES = 512
"""`kMinBlockSize`: block sizes are multiples of it."""
SMALL_BYTES = MIB
"""`kSmallSize`: the largest block of the small pool."""
SMALL_SEGMENT_BYTES = 2 * MIB
"""`kSmallBuffer`: what the small pool asks the driver for."""
LARGE_SEGMENT_BYTES = 20 * MIB
"""`kLargeBuffer`, later `large_segment_size_`: the segment of a medium block."""
MIN_LARGE_BYTES = 10 * MIB
"""`kMinLargeAlloc`: from here on a block gets a segment of its own size."""
ROUND_LARGE_BYTES = 2 * MIB
"""`kRoundLarge`: such a segment is a multiple of it."""
ROUNDUP_INTERVALS = 16
"""`kRoundUpPowerOfTwoIntervals`: sizes up to 1 MiB, 2 MiB, ... 32 GiB and above have their own number of divisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """`PYTORCH_ALLOC_CONF` as data; the defaults are PyTorch's. Raises `UsageError` for values that PyTorch refuses."""

    expandable_segments: bool = False
    """Grow one segment a pool and stream, page by page, instead of asking for many."""
    large_segment_bytes: int = LARGE_SEGMENT_BYTES
    """Segment of a block below 10 MiB, and page of an expandable large segment."""
    max_split_bytes: int | None = None
    """Blocks of this size or more are never split; None = no limit."""
    max_non_split_rounding_bytes: int | None = None
    """A cached block serves a request of `max_split_bytes` or more if less than this larger; None = a large segment."""
    garbage_collection_threshold: float = 0.0
    """Share of the allowed memory above which idle segments are returned, 0 = never; needs a memory fraction."""
    roundup_power2_divisions: tuple[int, ...] = (0,) * ROUNDUP_INTERVALS
    """Divisions between two powers of two to round a size up to, by interval of sizes; 0 = round to 512 B."""
    memory_fraction: float | None = None
    """`torch.cuda.set_per_process_memory_fraction`; None = never called."""

    def __post_init__(self) -> None:
        """Refuse what PyTorch refuses."""
        large = self.large_segment_bytes
        if large <= MIN_LARGE_BYTES:
            raise UsageError(f"large_segment_size_mb is {large / MIB:g}; it must be above {MIN_LARGE_BYTES // MIB}")
        if self.max_split_bytes is not None and self.max_split_bytes < large:
            raise UsageError(
                f"max_split_size_mb is {self.max_split_bytes / MIB:g}; it must be {large / MIB:g} or more",
                hint="leave it out for no limit",
            )
        rounding = self.max_non_split_rounding_bytes
        if rounding is not None and rounding < large:
            raise UsageError(f"max_non_split_rounding_mb is {rounding / MIB:g}; it must be {large / MIB:g} or more")
        if not 0 <= self.garbage_collection_threshold < 1:
            raise UsageError(
                f"garbage_collection_threshold is {self.garbage_collection_threshold:g}; it must lie between 0 and 1"
            )
        if self.memory_fraction is not None and not 0 <= self.memory_fraction <= 1:
            raise UsageError(f"per_process_memory_fraction is {self.memory_fraction:g}; it must lie between 0 and 1")
        divisions = self.roundup_power2_divisions
        if len(divisions) != ROUNDUP_INTERVALS or any(d < 0 or d & (d - 1) for d in divisions):
            raise UsageError(
                f"roundup_power2_divisions is {divisions}; it needs {ROUNDUP_INTERVALS} numbers, each 0 or a power of 2"
            )


def block_bytes(nbytes: int, settings: AllocatorSettings) -> int:
    """Size of the block that serves a request (`round_size`)."""
    if nbytes < MIN_BLOCK_BYTES:
        return MIN_BLOCK_BYTES
    interval = min(max(nbytes.bit_length() - MIB.bit_length(), 0), ROUNDUP_INTERVALS - 1)
    divisions = settings.roundup_power2_divisions[interval]
    if divisions > 1 and nbytes > MIN_BLOCK_BYTES * divisions:
        division = (1 << (nbytes.bit_length() - 1)) // divisions
        return -(-nbytes // division) * division
    return -(-nbytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES


def segment_bytes(size: int, settings: AllocatorSettings) -> int:
    """Bytes asked of the driver when no cached block can serve a block of `size` bytes (`get_allocation_size`)."""
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < MIN_LARGE_BYTES:
        return settings.large_segment_bytes
    return -(-size // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES


def parse_settings(text: str) -> AllocatorSettings:
    """The settings of a `PYTORCH_ALLOC_CONF` text; raises `UsageError` for a key or value that is not understood."""
    values: dict[str, Any] = {}
    for item in re.split(r",(?![^\[]*\])", re.sub(r"\s+", "", text)):
        key, _, value = item.partition(":")
        if key and not value:
            raise UsageError(f"allocator setting {key!r} has no value", hint=f"write {key}:VALUE")
        if key in _PARSERS:
            field, parse = _PARSERS[key]
            values[field] = _parsed(parse, key, value)
        elif key and key not in _WITHOUT_EFFECT:
            known = ", ".join(sorted({"backend", *_PARSERS, *_WITHOUT_EFFECT}))
            raise UsageError(f"allocator setting {key!r} is not known", hint=f"known: {known}")
    if values.pop("backend", "native") != "native":
        raise UsageError("only the allocator backend:native is simulated", hint="leave backend out, or write native")
    return AllocatorSettings(**values)


def _parsed(parse: Callable[[str], object], key: str, value: str) -> object:
    try:
        return parse(value)
    except (KeyError, ValueError):
        raise UsageError(f"allocator setting {key}:{value} cannot be read", hint="see PYTORCH_ALLOC_CONF") from None


def _divisions(value: str) -> tuple[int, ...]:
    """One number, or `[256:1,512:2,>:4]`: the first holds up to 256 MiB, `>` above the last, others at their size."""
    if not value.startswith("["):
        return (int(value),) * ROUNDUP_INTERVALS
    divisions = [0] * ROUNDUP_INTERVALS
    last = -1
    for limit, count in (item.split(":") for item in value[1:-1].split(",")):
        if limit == ">":
            divisions[last + 1 :] = [int(count)] * (ROUNDUP_INTERVALS - last - 1)
            break
        first, last = last, min(int(limit).bit_length() - 1, ROUNDUP_INTERVALS - 1)
        divisions[0 if first < 0 else last : last + 1] = [int(count)] * (last + 1 if first < 0 else 1)
    return tuple(divisions)


def _mib(value: str) -> int:
    return int(value) * MIB


_PARSERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "backend": ("backend", str),
    "expandable_segments": ("expandable_segments", {"True": True, "False": False}.__getitem__),
    "large_segment_size_mb": ("large_segment_bytes", _mib),
    "max_split_size_mb": ("max_split_bytes", _mib),
    "max_non_split_rounding_mb": ("max_non_split_rounding_bytes", _mib),
    "garbage_collection_threshold": ("garbage_collection_threshold", float),
    "per_process_memory_fraction": ("memory_fraction", float),
    "roundup_power2_divisions": ("roundup_power2_divisions", _divisions),
}
_WITHOUT_EFFECT = frozenset({
    "expandable_segments_handle_type", "graph_capture_record_stream_reuse", "pinned_free_catch_all",
    "pinned_max_cached_size_mb", "pinned_max_round_threshold_mb", "pinned_num_register_threads",
    "pinned_reserve_segment_size_mb", "pinned_use_background_threads", "pinned_use_cuda_host_register",
    "release_lock_on_cudamalloc", "throw_on_cudamalloc_oom",
})  # fmt: skip
"""Settings of the host allocator and of locking, which change no device block; and one for captures that reuse what
other streams used, off by default, which is not simulated."""
