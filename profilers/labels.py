"""Labels on the events of the CUDA allocator's history: what was going on when each of them happened.

A recent torch takes a text and puts it on every event that follows. An older one has no such thing; there, each label
is noted with the number of events so far, and put on the events when the history is read:

    label "~0"   alloc   label "7"   alloc   alloc   label "~7"   free
    0 events     ~0      1 event     7       7       3 events     ~7
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Protocol

import torch

_COUNTED = frozenset({"alloc", "free_requested"})
"""Actions that are an allocation or a free of the program; others are the allocator's own."""


class Labels(Protocol):
    """Both kinds; `set` comes before what it labels."""

    def set(self, text: str) -> None:
        """Label what follows."""

    def put_on(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same events, each with its label as `user_metadata`."""


class Told:
    """The allocator itself puts the label on its events."""

    set = staticmethod(getattr(torch._C, "_cuda_setMemoryMetadata", lambda _: None))

    @staticmethod
    def put_on(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The events as they are."""
        return history


class Counted:
    """The number of events so far says where a label belongs. Begins where it is made: the history must be empty."""

    def __init__(self) -> None:
        """Begin counting."""
        self._before = _events_so_far()
        self._starts: list[int] = []
        self._texts: list[str] = []

    def set(self, text: str) -> None:
        """Label what follows."""
        self._starts.append(_events_so_far() - self._before)
        self._texts.append(text)

    def put_on(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same events, each with its label as `user_metadata`."""
        labelled, index = [], 0
        for event in history:
            at = bisect_right(self._starts, index)
            labelled.append({**event, "user_metadata": self._texts[at - 1] if at else ""})
            index += event["action"] in _COUNTED
        return labelled


def _events_so_far() -> int:
    """Allocations and frees of the current device since the process began."""
    counted = torch._C._cuda_memoryStats(torch.cuda.current_device())["allocation"]["all"]
    return int(counted["allocated"]) + int(counted["freed"])


def new_labels() -> Labels:
    """The kind that this torch can have."""
    return Told() if hasattr(torch._C, "_cuda_setMemoryMetadata") else Counted()
