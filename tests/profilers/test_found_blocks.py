"""Blocks are found whatever a module says of its length."""

from __future__ import annotations

from torch import nn

from dnnmem.profilers.found_blocks import lists_of


class Wrapped(nn.Module):
    """As torch.compile wraps: a length is what it has only if the module inside has one."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(2, 2)

    def __len__(self):
        raise TypeError("Linear does not support len()")


def test_a_block_without_a_length_is_a_block():
    (blocks,) = lists_of(nn.Sequential(*(Wrapped() for _ in range(3))))
    assert (blocks.type, blocks.count) == ("Wrapped", 3)
