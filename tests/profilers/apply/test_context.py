"""What a rank of a sequence sees in a model's code: its own positions, its own classes, and errors for the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.apply.context import _sharing
from dnnmem.profilers.apply.context_mode import Listening, PartOfSequence, attend
from dnnmem.profilers.apply.context_share import Share


def share(rank=1, ranks=2, method="ring", length=16):
    found = Share(rank=rank, ranks=ranks, group=None, method=method)
    found.start(2, length)
    return found


@pytest.mark.parametrize("method", ["all_gather", "ring", "ulysses"])
def test_ranks_have_all_positions_once(method):
    parts = [share(rank, 4, method).take(torch.arange(16), 0) for rank in range(4)]
    assert {len(part) for part in parts} == {4}
    assert sorted(torch.cat(parts).tolist()) == list(range(16))


def test_causal_work_is_equal():
    # GIVEN 4 ranks of a ring  THEN their queries see as many keys, all together
    assert len({int((share(rank, 4).take(torch.arange(16), 0) + 1).sum()) for rank in range(4)}) == 1


def test_code_that_counts_positions_gets_those_of_the_rank():
    # GIVEN the second of two ranks, whose parts are 4 to 11
    mine, table = share(), nn.Parameter(torch.arange(32.0)[:, None])
    with Listening(mine):
        counted = torch.arange(8), torch.arange(0, 8, device="cpu")
        rows, nested = table[:8], table[None][:, :8]
        others = torch.arange(5), table[:5], torch.zeros(8)[:8]
    # THEN what counts from 0 to the length that it sees are those, and nothing else is
    wanted = list(range(4, 12))
    assert [x.tolist() for x in counted] == [wanted, wanted]
    assert rows.flatten().tolist() == nested.flatten().tolist() == wanted
    assert [len(x) for x in others] == [5, 5, 8]
    assert others[0].tolist() == list(range(5))


@pytest.mark.parametrize("ignored", [0, 5])
def test_losses_of_ranks_average_to_that_of_whole_sequences(ignored):
    # GIVEN logits of two sequences, some of whose classes do not count, and each rank's part of them
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 16, 7), torch.randint(7, (2, 16))
    labels.flatten()[:ignored] = -100
    parts = [PartOfSequence.of(share(rank).take(logits, 1), share(rank)) for rank in range(2)]
    # WHEN a loss in the loop takes each with whole labels
    losses = [functional.cross_entropy(part.float().view(-1, 7), labels.view(-1)) for part in parts]
    # THEN their mean is the loss, and they are plain tensors
    assert {type(loss) for loss in losses} == {torch.Tensor}
    torch.testing.assert_close(sum(losses) / 2, functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [((14, 7), 30, r"logits \(14, 7\) for 30 classes, and not 16 rows for the 32 positions"), ((2, 7), 2, "for 2 cla")],
)
def test_a_loss_of_something_else_is_refused(logits, labels, words):
    part = PartOfSequence.of(torch.randn(logits), share())
    with pytest.raises(UnsupportedError, match=words):
        functional.cross_entropy(part, torch.zeros(labels, dtype=torch.long))


def test_attention_of_something_else_is_refused():
    q = torch.randn(2, 4, 8, 8)
    with pytest.raises(UnsupportedError, match=r"a mask of \(8, 8\), over the positions of one rank"):
        attend(share(), q, q, q, attn_mask=torch.ones(8, 8))
    with pytest.raises(UnsupportedError, match="attention of 8 positions to 5, but 8 of each sequence of 16"):
        attend(share(), q, q[:, :, :5], q[:, :, :5])
    with pytest.raises(UnsupportedError, match=r"4 heads of queries on a rank; 4 % cp 8 = 4"):
        attend(share(0, 8, "ulysses", 64), q, q, q)


def test_a_model_without_such_attention_is_refused():
    model = nn.Linear(3, 3)
    forward = _sharing(model, share())
    with pytest.raises(UnsupportedError, match="Linear never calls scaled_dot_product_attention"):
        forward(torch.randn(2, 16, 3))
    with pytest.raises(UnsupportedError, match=r"sequences of 10 under cp 2, ring: 10 % \(2 \* cp\) = 2"):
        forward(torch.randn(2, 10, 3))
