"""The `dnnmem` fixture: the memory of any code in a test.

def test_training(dnnmem):
    with dnnmem.measure() as m:
        train()
    assert m.peak_bytes < 2**30
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dnnmem.estimator.baseline import Entry
    from dnnmem.estimator.profile import Profile
    from dnnmem.profilers.measure import Measured


class Block:
    """What a measured block needed; known once it has ended."""

    def __init__(self, measured: Measured) -> None:
        """Of what is being measured."""
        self._measured = measured

    @property
    def entry(self) -> Entry:
        """All numbers, as a baseline keeps them."""
        return self._measured.entry

    @property
    def peak_bytes(self) -> int:
        """The most that was alive at once; on a GPU as its allocator counts."""
        return self.entry.allocated_bytes

    @property
    def reserved_bytes(self) -> int | None:
        """The most that the caching allocator held; None without one."""
        return self.entry.reserved_bytes

    @property
    def layers(self) -> dict[tuple[str, str], int]:
        """Bytes at the peak by module path and kind, the largest first; empty on a GPU, where nothing is recorded."""
        return dict(sorted(self.entry.modules.items(), key=lambda item: (-item[1], item[0])))

    @property
    def profile(self) -> Profile | None:
        """All that is known of the block, as of a training step; None on a GPU."""
        return self._measured.profile


class Measurer:
    """What the fixture gives to a test."""

    def __init__(self, item: pytest.Item) -> None:
        """`item`: the test."""
        self._item = item
        self._count = 0

    @contextmanager
    def measure(self, name: str = "", *, device: str | None = None, gpu: str | None = None) -> Iterator[Block]:
        """Measure what runs in the block, in this process.

        Args: `name` tells blocks of one test apart in a baseline, else they are numbered; `device` is `cpu`, `fake` or
        `cuda`, by default the test's own, else `cuda` where there is a GPU and `cpu` elsewhere; `gpu` is whose kernels
        are assumed on `fake`. Raises `UsageError`.
        """
        from dnnmem.cli.testing.hooks import noted_blocks, place_of_block
        from dnnmem.profilers.measure import measuring

        self._count += 1
        target = f"{self._item.nodeid} {name or f'#{self._count}'}"
        where = place_of_block(self._item, device, gpu)
        with ExitStack() as stack:
            if where.enters_faking and where.faking is not None:
                stack.enter_context(where.faking.active())
            block = Block(
                stack.enter_context(
                    measuring(target, device=where.device, gpu=where.gpu, faking=where.faking, record=where.record)
                )
            )
            yield block
        noted_blocks(self._item).append(block.entry)
