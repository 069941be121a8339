"""What differs in the caching allocator from one release of PyTorch to another, as data.

Each difference is a field of `AllocatorRules` and a line of `CHANGES`, which says since when it holds. Releases with a
tested one were run against the simulated allocator (tests/accuracy/allocator_programs.py); a difference between two
tested releases is placed at the later one, since those in between were not run.

    torch 2.6, 2.7, 2.8, 2.9   one set of rules
    torch 2.14                 another

>>> rules_of("2.7.1+cu126").pools_defer, rules_of("2.14.1").pools_defer, rules_of(None) == AllocatorRules()
(True, False, True)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

TESTED = ("2.6.0", "2.7.1", "2.8.0", "2.9.1", "2.14.1")
"""Releases that the simulated allocator was held against."""

Release = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorRules:
    """How one release's allocator behaves where releases differ; the defaults are the newest tested one's."""

    pools_defer: bool = False
    """While any private pool serves requests, no event is asked and the cache is not emptied for a retry; False: only
    while the stream that requests is captured into a graph."""


class Change(NamedTuple):
    """One difference."""

    name: str
    """Field of `AllocatorRules`."""
    since: Release
    """First tested release that behaves as `AllocatorRules()` does."""
    before: bool
    """The field's value in earlier releases."""
    what: str
    """In words: what it was, what it is."""
    source: str
    """Where PyTorch decides it."""


CHANGES: tuple[Change, ...] = (
    Change(
        "pools_defer", (2, 14), True,  # noqa: FBT003
        "while any private pool serves requests, blocks that other streams used stay in use, and a refused request is "
        "not retried after emptying the cache; since: only while the requesting stream is captured into a graph",
        "`malloc` of c10/cuda/CUDACachingAllocator.cpp: `captures_underway.empty()`",
    ),
)  # fmt: skip

SETTINGS_SINCE: dict[str, Release] = {
    "graph_capture_record_stream_reuse": (2, 9),
    "large_segment_size_mb": (2, 14),
    "per_process_memory_fraction": (2, 14),
    "pinned_free_catch_all": (2, 14),
    "pinned_max_cached_size_mb": (2, 14),
    "pinned_max_round_threshold_mb": (2, 14),
    "pinned_reserve_segment_size_mb": (2, 14),
    "throw_on_cudamalloc_oom": (2, 14),
}
"""First tested release that takes a key of PYTORCH_ALLOC_CONF; earlier ones say `Unrecognized CachingAllocator option`
(c10/cuda/CUDAAllocatorConfig.cpp, later c10/core/AllocatorConfig.h). All others of `parse_settings`: 2.6 or before."""


def rules_of(version: str | None) -> AllocatorRules:
    """The rules of a release, as `torch.__version__` writes it; None, or a text that is none: the newest ones."""
    release = release_of(version)
    rules = AllocatorRules()
    if release is None:
        return rules
    return replace(rules, **{change.name: change.before for change in CHANGES if release < change.since})


def release_of(version: str | None) -> Release | None:
    """Major and minor number of a version.

    >>> release_of("2.10.0+cu128"), release_of("unknown"), release_of(None)
    ((2, 10), None, None)
    """
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(found[1]), int(found[2])) if found else None
