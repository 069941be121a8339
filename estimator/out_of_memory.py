"""What PyTorch says when a GPU is full: the message of its caching allocator, number by number.

>>> error = OutOfMemoryError(
...     tried_bytes=20 * 2**20, capacity_bytes=2**30, free_bytes=0, allocated=2**29, reserved=2**30)
>>> print(error.message)
CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1024.00 MiB of which 0 bytes is free. \
Of the allocated memory 512.00 MiB is allocated by PyTorch, and 512.00 MiB is reserved by PyTorch but unallocated.
"""

from __future__ import annotations

from dnnmem.estimator.errors import DnnmemError


class OutOfMemoryError(DnnmemError):
    """No block, and nothing left to return to the driver; the numbers are those of PyTorch's own message."""

    exit_code = 1

    def __init__(
        self,
        *,
        tried_bytes: int,
        capacity_bytes: int,
        free_bytes: int,
        allocated: int,
        reserved: int,
        allowed_bytes: int | None = None,
        private_bytes: int = 0,
    ) -> None:
        """Args: the segment asked for, what the process may have, what the driver has left, the allocator's sums.

        `allowed_bytes` is the limit of a memory fraction, `private_bytes` what of `allocated` is cached in private
        pools, which PyTorch counts as allocated here.
        """
        allowed = "" if allowed_bytes is None else f"{format_size(allowed_bytes)} allowed; "
        private = f", with {format_size(private_bytes)} allocated in private pools (e.g., CUDA Graphs)"
        super().__init__(
            f"CUDA out of memory. Tried to allocate {format_size(tried_bytes)}. GPU 0 has a total capacity of "
            f"{format_size(capacity_bytes)} of which {format_size(free_bytes)} is free. {allowed}Of the allocated "
            f"memory {format_size(allocated)} is allocated by PyTorch{private if private_bytes else ''}, and "
            f"{format_size(reserved - allocated)} is reserved by PyTorch but unallocated.",
            hint="a smaller batch, recomputation, sharding or a larger GPU",
        )
        self.tried_bytes = tried_bytes
        self.capacity_bytes = capacity_bytes
        self.free_bytes = free_bytes
        self.allocated_bytes = allocated
        self.reserved_bytes = reserved


def format_size(nbytes: int) -> str:
    """`format_size` of PyTorch.

    >>> format_size(1024), format_size(1025), format_size(2**30 + 1)
    ('1024 bytes', '1.00 KiB', '1.00 GiB')
    """
    for unit, name in ((2**10, "bytes"), (2**20, "KiB"), (2**30, "MiB")):
        if nbytes <= unit:
            return f"{nbytes} bytes" if name == "bytes" else f"{nbytes / (unit / 1024):.2f} {name}"
    return f"{nbytes / 2**30:.2f} GiB"
