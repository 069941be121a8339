from __future__ import annotations

import torch
from torch import nn

from dnnmem.profilers.few_blocks import keep_few
from dnnmem.profilers.record_sizes import micro_batches


class Block(nn.Module):
    def __init__(self, layer_idx, width=4, rate=0.0):
        super().__init__()
        self.layer_idx = layer_idx
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(rate)


def model(blocks):
    return nn.ModuleDict({"embed": nn.Embedding(8, 4), "layers": nn.ModuleList(blocks)})


def test_equal_blocks_are_cut_though_they_know_their_number():
    # GIVEN eight equal blocks  WHEN three are kept  THEN three are left, and it is told that there were eight
    found = model([Block(n) for n in range(8)])
    kept = keep_few(found, 3)
    assert (kept.root, kept.blocks, len(found["layers"])) == (("layers",), 8, 3)


def test_blocks_that_differ_stay():
    # GIVEN blocks that differ in a rate, a width, a type, or share a weight  THEN nothing is cut
    shared = [Block(n) for n in range(8)]
    shared[7].linear.weight = shared[0].linear.weight
    half = [Block(n) for n in range(8)]
    half[4].to(torch.bfloat16)
    for blocks in (
        [Block(n, rate=n / 10) for n in range(8)],
        [Block(n, width=4 + (n == 5)) for n in range(8)],
        shared,
        half,
        [Block(n) for n in range(3)],
    ):
        found = model(blocks)
        assert keep_few(found, 3) is None
        assert len(found["layers"]) == len(blocks)


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block(0)


def test_first_blocks_that_are_others_are_kept_besides():
    # GIVEN blocks of one class of which the first two hold another module  WHEN three are kept  THEN four are
    blocks = [Block(n) for n in range(8)]
    for n in (0, 1):
        blocks[n].linear = Wide()
    found = model(blocks)
    assert (keep_few(found, 3), len(found["layers"])) == ((("layers",), 8), 4)
    # AND where those after them differ in a rate, nothing is cut
    blocks = [Block(n, rate=n / 10) for n in range(8)]
    blocks[0].linear = Wide()
    assert keep_few(model(blocks), 3) is None


def test_micro_batches_divide_the_largest():
    assert micro_batches(8) == [8, 4, 2, 1]
    assert micro_batches(1) == [1]
    assert micro_batches(96) == [96, 48, 24, 12, 6, 3, 1]
