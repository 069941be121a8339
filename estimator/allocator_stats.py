"""What a caching allocator counts: the numbers of `torch.cuda.memory_stats`, under its names.

    allocated <= active <= reserved      bytes; each has a current value and a peak
    requested <= active                  by the program's own sizes
    inactive_split       free blocks that cannot go back to the driver, since a part of their segment is held

>>> stats = AllocatorStats()
>>> stats.grow_active(512); stats.as_dict()["active_bytes.all.peak"]
512
"""

from __future__ import annotations

from dataclasses import dataclass

_GAUGES = (
    "allocation", "segment", "active", "inactive_split",
    "allocated_bytes", "requested_bytes", "active_bytes", "reserved_bytes", "inactive_split_bytes",
)  # fmt: skip


@dataclass(slots=True, eq=False)
class AllocatorStats:
    """One allocator's counters since its start; peaks since the last reset. Bytes, or numbers of blocks."""

    allocation: int = 0
    """Blocks that the program holds."""
    allocated_bytes: int = 0
    """Their sizes."""
    requested_bytes: int = 0
    """What the program asked for, in active blocks."""
    active: int = 0
    """Blocks held, or freed and still in use by another stream."""
    active_bytes: int = 0
    """Their sizes."""
    segment: int = 0
    """Segments; expandable ones do not count."""
    reserved_bytes: int = 0
    """Segments and mapped pages."""
    inactive_split: int = 0
    """Free blocks of segments that are in part held; expandable ones do not count."""
    inactive_split_bytes: int = 0
    """Their sizes."""
    peak_allocation: int = 0
    """Largest `allocation` since the last reset."""
    peak_allocated_bytes: int = 0
    """Largest `allocated_bytes` since the last reset."""
    peak_requested_bytes: int = 0
    """Largest `requested_bytes` since the last reset."""
    peak_active: int = 0
    """Largest `active` since the last reset."""
    peak_active_bytes: int = 0
    """Largest `active_bytes` since the last reset."""
    peak_segment: int = 0
    """Largest `segment` since the last reset."""
    peak_reserved_bytes: int = 0
    """Largest `reserved_bytes` since the last reset."""
    peak_inactive_split: int = 0
    """Largest `inactive_split` since the last reset."""
    peak_inactive_split_bytes: int = 0
    """Largest `inactive_split_bytes` since the last reset."""
    reserved_at_peak_allocated_bytes: int = 0
    """Reserved when the peak of allocated bytes was first reached."""
    num_alloc_retries: int = 0
    """How often the driver refused and the cache was emptied: each one stalls the GPU."""
    num_ooms: int = 0
    """How often nothing helped."""
    num_device_alloc: int = 0
    """Calls that got memory from the driver."""
    num_device_free: int = 0
    """Calls that gave it back."""

    def grow(self, requested: int, nbytes: int) -> None:
        """The program gets a block of `nbytes` for what it `requested`."""
        self.allocation = count = self.allocation + 1
        if count > self.peak_allocation:
            self.peak_allocation = count
        self.requested_bytes = asked = self.requested_bytes + requested
        if asked > self.peak_requested_bytes:
            self.peak_requested_bytes = asked
        self.allocated_bytes = held = self.allocated_bytes + nbytes
        if held > self.peak_allocated_bytes:
            self.peak_allocated_bytes = held
            self.reserved_at_peak_allocated_bytes = self.reserved_bytes
        self.grow_active(nbytes)

    def grow_active(self, nbytes: int) -> None:
        """A block of `nbytes` leaves the cache."""
        self.active = active = self.active + 1
        if active > self.peak_active:
            self.peak_active = active
        self.active_bytes = held = self.active_bytes + nbytes
        if held > self.peak_active_bytes:
            self.peak_active_bytes = held

    def grow_reserved(self, nbytes: int, segments: int) -> None:
        """The driver gives `nbytes`, as `segments` new segments."""
        self.num_device_alloc += 1
        self.reserved_bytes += nbytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        self.segment += segments
        self.peak_segment = max(self.peak_segment, self.segment)

    def change_split(self, count: int, nbytes: int) -> None:
        """Free pieces of split segments come or go."""
        self.inactive_split = pieces = self.inactive_split + count
        if pieces > self.peak_inactive_split:
            self.peak_inactive_split = pieces
        self.inactive_split_bytes = free = self.inactive_split_bytes + nbytes
        if free > self.peak_inactive_split_bytes:
            self.peak_inactive_split_bytes = free

    def reset_peak(self) -> None:
        """Begin the peaks anew from what is held now (`torch.cuda.reset_peak_memory_stats`)."""
        for name in _GAUGES:
            setattr(self, f"peak_{name}", getattr(self, name))
        self.reserved_at_peak_allocated_bytes = self.reserved_bytes

    def as_dict(self) -> dict[str, int]:
        """As `torch.cuda.memory_stats` names them, over both pools."""
        found = {f"{name}.all.current": int(getattr(self, name)) for name in _GAUGES}
        found |= {f"{name}.all.peak": int(getattr(self, f"peak_{name}")) for name in _GAUGES}
        return found | {
            "num_alloc_retries": self.num_alloc_retries,
            "num_ooms": self.num_ooms,
            "num_device_alloc": self.num_device_alloc,
            "num_device_free": self.num_device_free,
        }
