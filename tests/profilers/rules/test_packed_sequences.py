"""Packed sequences need no GPU and no values but their lengths: a fake run's sizes are those of a real one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dnnmem.profilers.faking import Faking
from dnnmem.profilers.rules.temporaries_kernels import TEMPORARIES

LENGTHS = [3, 7, 7, 1]


def packed_step(lengths, x, *, batch_first, total):
    """Pack, scale, pad; the gradient of `x`, and what came out."""
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    packed = packed._replace(data=packed.data * 2)
    padded, found = pad_packed_sequence(packed, batch_first=batch_first, total_length=total)
    padded.sum().backward()
    return padded, found, packed.batch_sizes, x.grad


@pytest.mark.parametrize(("batch_first", "total"), [(True, None), (False, 9)])
def test_sizes_are_those_of_a_real_run(batch_first, total):
    shape = (4, 7, 5) if batch_first else (7, 4, 5)
    real = packed_step(
        torch.tensor(LENGTHS), torch.zeros(shape, requires_grad=True), batch_first=batch_first, total=total
    )
    with Faking(None).active():
        x = torch.zeros(shape, requires_grad=True)
        fake = packed_step(torch.tensor(LENGTHS), x, batch_first=batch_first, total=total)
        known = [t.tolist() for t in fake[1:3]]
    assert [(t.shape, t.stride()) for t in fake] == [(t.shape, t.stride()) for t in real]
    assert known == [real[1].tolist(), real[2].tolist()]


def test_recurrent_layers_take_them():
    with Faking(None).active():
        packed = pack_padded_sequence(
            torch.zeros(4, 7, 5), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
        )
        out, _ = pad_packed_sequence(nn.GRU(5, 6, batch_first=True)(packed)[0], batch_first=True)
    assert out.shape == (4, 7, 6)


def test_steps_of_as_many_sequences_are_copied_together():
    # GIVEN sequences of 3, 3 and 1 steps  THEN the first step of three and two steps of two are copied, then joined
    find, row = TEMPORARIES[torch.ops.aten._pack_padded_sequence.default], 5 * 4
    sizes = torch.tensor([3, 2, 2])
    needs = find(None, (torch.zeros(3, 3, 5), torch.tensor([3, 3, 1]), True), {}, (torch.zeros(7, 5), sizes))
    assert needs.before == (3 * row, 4 * row)
