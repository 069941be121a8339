"""Sizes of recurrent networks: weights without gaps, and the virtual GPU's own numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from torch import nn

from dnnmem.profilers.rules.recurrent_sizes import GRU, LSTM, RELU, TANH, Network, elements, places

KINDS = {LSTM: nn.LSTM, GRU: nn.GRU, TANH: nn.RNN, RELU: nn.RNN}


def network(mode, *, layers=3, directions=2, projection=0):
    return Network(mode=mode, input=5, hidden=7, output=projection or 7, layers=layers, directions=directions)


@pytest.mark.parametrize("projection", [0, 4])
@pytest.mark.parametrize("mode", KINDS)
def test_weights_fill_the_block_without_gaps(mode, projection):
    if projection and mode != LSTM:
        pytest.skip("only an LSTM has projections")
    it = network(mode, projection=projection)
    options = {"proj_size": projection} if projection else {}
    layers = KINDS[mode](5, 7, 3, bidirectional=True, **options)
    spans = sorted((i, i + w.numel()) for i, w in zip(places(it, biases=True), layers._flat_weights, strict=True))
    assert spans[0][0] == 0
    assert all(end == start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] == elements(it)


def test_without_biases_their_places_stay_empty():
    it = network(LSTM, layers=1, directions=1)
    assert places(it, biases=False) == [0, 4 * 7 * 5]
    assert elements(it) == 4 * 7 * (5 + 7 + 2)
