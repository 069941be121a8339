"""The oracle of saved bytes against counts done by hand."""

from __future__ import annotations

import torch
from torch import nn

from tests.models.oracle import saved_bytes
from tests.models.zoo import ZOO


def loss_of(model, batch):
    return model(batch).sum()


def test_a_linear_layer_saves_only_its_input():
    # GIVEN two layers  WHEN the first reads the batch and the second the hidden tensor (4, 16)
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2))
    # THEN only the hidden tensor counts: the batch and the weights live anyway
    assert saved_bytes(model, torch.randn(4, 8), loss_of) == 4 * 16 * 4


def test_views_of_one_storage_count_once_and_whole():
    # GIVEN a hidden tensor h (4, 16) of which two halves are multiplied: both are saved
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 16)

        def forward(self, x):
            a, b = self.layer(x).chunk(2, dim=-1)
            return a * b

    assert saved_bytes(Halves(), torch.randn(4, 8), loss_of) == 4 * 16 * 4

    class Corner(Halves):
        def forward(self, x):
            return self.layer(x)[:1, :1] ** 2

    assert saved_bytes(Corner(), torch.randn(4, 8), loss_of) == 4 * 16 * 4


def test_a_tensor_saved_twice_counts_once():
    # GIVEN exp, which saves its result, and a square of that, which saves it again
    class Twice(nn.Linear):
        def forward(self, x):
            return super().forward(x).exp() ** 2

    assert saved_bytes(Twice(8, 16), torch.randn(4, 8), loss_of) == 4 * 16 * 4


def test_what_died_before_the_end_is_not_counted():
    # GIVEN a branch whose result is thrown away
    class Thrown(nn.Linear):
        def forward(self, x):
            super().forward(x).exp()
            return super().forward(x)

    assert saved_bytes(Thrown(8, 16), torch.randn(4, 8), loss_of) == 0


def test_frozen_weights_save_no_input():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16).requires_grad_(requires_grad=False), nn.ReLU())
    # THEN the frozen layer needs its weight only, and relu its result
    assert saved_bytes(model, torch.randn(4, 8), loss_of) == 4 * 16 * 4


def test_checkpointing_saves_less_and_counts_the_inputs_of_blocks():
    def saved(name):
        torch.manual_seed(0)
        entry = ZOO[name]
        return saved_bytes(entry.make_model(), entry.make_batch(4), entry.forward_loss)

    assert 0 < saved("checkpoint_reentrant") < saved("gpt") / 2
    assert 0 < saved("checkpoint_nonreentrant") < saved("llama") / 2
