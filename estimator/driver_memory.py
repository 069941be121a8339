"""What the CUDA driver hands out: memory up to a capacity, and addresses for it.

The caching allocator sees addresses only through their order: the lowest of two equal free blocks serves a request.
Here each new range lies above all earlier ones; a real driver also fills gaps, and differs from release to release. The
addresses of a recorded log can be given instead.

>>> driver = Driver(capacity_bytes=6 * 2**20)
>>> first, second, third = (driver.reserve(2 * 2**20) for _ in range(3))
>>> first < second < third, driver.free_bytes, driver.reserve(1)
(True, 0, None)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_FIRST_ADDRESS = 0x3_0200_0000
_GRANULE_BYTES = 2 * 2**20


@dataclass(slots=True, eq=False, kw_only=True)
class Driver:
    """Device memory under one allocator."""

    capacity_bytes: int | None = None
    """Bytes that this process can have in all, without its CUDA context; None = no limit."""
    next_address: Callable[[int], int] | None = None
    """Address for a range of so many bytes; None = above all earlier ones."""
    used_bytes: int = 0
    """Bytes handed out."""
    cursor: int = _FIRST_ADDRESS
    """First address never used."""

    @property
    def free_bytes(self) -> int | None:
        """Bytes left, None without a limit."""
        return None if self.capacity_bytes is None else self.capacity_bytes - self.used_bytes

    def address(self, nbytes: int) -> int:
        """Addresses for `nbytes` bytes, with no memory behind them (`cuMemAddressReserve`)."""
        if self.next_address is not None:
            return self.next_address(nbytes)
        address = self.cursor
        self.cursor += -(-nbytes // _GRANULE_BYTES) * _GRANULE_BYTES
        return address

    def charge(self, nbytes: int) -> bool:
        """Take memory without an address (`cuMemCreate`); False if there is not so much."""
        if self.capacity_bytes is not None and self.used_bytes + nbytes > self.capacity_bytes:
            return False
        self.used_bytes += nbytes
        return True

    def reserve(self, nbytes: int) -> int | None:
        """Memory with an address (`cudaMalloc`); None if there is not so much."""
        return self.address(nbytes) if self.charge(nbytes) else None

    def release(self, nbytes: int) -> None:
        """Give memory back (`cudaFree`, `cuMemRelease`)."""
        self.used_bytes -= nbytes
