"""Small values are true in a fake run; unknown ones are assumed aloud, or refused where a shape hangs on them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from dnnmem.profilers.values import MOST_ELEMENTS, SmallValues


def run(program):
    """What `program()` returns in a fake run, and what had to be assumed."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, SmallValues(fake) as values:
        return program(), values.assumptions


def unknown():
    return torch.randn(64, 64)


def written_in_place():
    a = torch.zeros(4, dtype=torch.long)
    a[1] = 7
    a.add_(1)
    return a.tolist()


def through_a_view():
    a = torch.arange(6).reshape(2, 3)
    a[1].fill_(9)
    return a.sum().item()


def out_of_a_branch():
    mask = torch.ones(2, 5, dtype=torch.bool)
    return "all" if mask.all() else "some"


def padded():
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    return mask.sum(1).tolist(), bool(mask.all())


def of_a_copy():
    a = torch.arange(3)
    b = a.clone()
    a.zero_()
    return a.tolist(), b.tolist()


KNOWN = [
    (lambda: [round(rate.item(), 2) for rate in torch.linspace(0, 0.2, 3)], [0.0, 0.1, 0.2]),
    (out_of_a_branch, "all"),
    (padded, ([3, 5], False)),
    (lambda: torch.arange(10).view(2, 5)[1].max().item(), 9),
    (lambda: torch.tensor([0, 3, 0, 5]).nonzero().shape, (2, 1)),
    (lambda: torch.tensor([5, 1, 5]).unique().tolist(), [1, 5]),
    (lambda: torch.arange(6)[torch.arange(6) % 2 == 0].shape, (3,)),
    (lambda: torch.bincount(torch.tensor([1, 1, 3])).tolist(), [0, 2, 0, 1]),
    (lambda: torch.tensor([2, 1]).repeat_interleave(torch.tensor([2, 1])).tolist(), [2, 2, 1]),
    ((torch.tensor(3) + 4).item, 7),
    (written_in_place, [1, 8, 1, 1]),
    (through_a_view, 30),
    (of_a_copy, ([0, 0, 0], [0, 1, 2])),
    (lambda: torch.tensor([1.5, 2.5]).sum().item(), 4.0),
    (lambda: torch.cat([torch.arange(2), torch.arange(3)]).tolist(), [0, 1, 0, 1, 2]),
    (lambda: torch.tensor([3, 4]).cumsum(0).tolist(), [3, 7]),
    (lambda: int(torch.full((2,), 6)[0]), 6),
    (lambda: list(range(torch.tensor(3))), [0, 1, 2]),
]


@pytest.mark.parametrize(("program", "expected"), KNOWN, ids=range(len(KNOWN)))
def test_small_values_are_true(program, expected):
    found, assumed = run(program)
    assert found == expected
    assert not assumed


def test_random_integers_are_those_of_the_seed():
    def program():
        torch.manual_seed(5)
        return torch.randint(100, (8,)).tolist(), torch.randperm(5).tolist()

    (integers, order), assumed = run(program)
    assert not assumed
    assert all(0 <= i < 100 for i in integers)
    assert sorted(order) == [0, 1, 2, 3, 4]
    # THEN the same seed gives the same
    assert run(program)[0] == (integers, order)


def test_views_share_what_becomes_unknown():
    # GIVEN known values, and a view of them into which something unknown is written
    def program():
        a = torch.zeros(4)
        view = a[:2]
        view.copy_(torch.randn(2))
        return a.sum().item()

    assert run(program) == (0.0, {"a float32 that the program reads back is taken as 0.0": 1})


def test_unknown_values_are_assumed_aloud():
    # GIVEN what is computed from large tensors
    def program():
        loss = torch.randn(64, 64).mean()
        return loss.item(), bool(loss > 0), float(loss)

    (loss, above, again), assumed = run(program)
    assert (loss, above, again) == (0.0, False, 0.0)
    assert assumed == {
        "a bool that the program reads back is taken as False": 1,
        "a float32 that the program reads back is taken as 0.0": 2,
    }


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (lambda x: torch.isfinite(x.mean()), True),
        (lambda x: torch.isfinite(x).all(), True),
        (lambda x: torch._is_all_true(x.eq(x)), True),
        (lambda x: torch.isnan(x.sum()), False),
        (lambda x: torch.isinf(x.sum()), False),
    ],
    ids=["finite", "all finite", "all true", "nan", "infinite"],
)
def test_nothing_is_infinite_or_missing(question, answer):
    found, assumed = run(lambda: bool(question(torch.randn(1024, 64))))
    assert found is answer
    # THEN what the answer stands on is said
    assert assumed.total() == 1


def test_what_a_known_mask_chooses_has_a_known_shape():
    # GIVEN activations, of which a mask chooses some, in both passes
    def program():
        mask = torch.arange(10).reshape(2, 5) % 3 == 0
        x = torch.randn(2, 5, 64, 64, requires_grad=True)
        chosen = (2 * x)[mask]
        chosen[chosen.shape[0] - 1 :] = 0
        chosen.sum().backward()
        return chosen.shape, x.grad.shape

    assert run(program) == (((4, 64, 64), (2, 5, 64, 64)), {})


def test_ctc_hangs_on_its_lengths_alone():
    def program():
        x, targets = torch.randn(50, 4, 30, requires_grad=True), torch.randint(1, 30, (4, 20))
        lengths = torch.full((4,), 50), torch.tensor([3, 20, 5, 7])
        loss = nn.functional.ctc_loss(x.log_softmax(-1), targets, *lengths)
        loss.backward()
        return loss.shape, x.grad.shape

    assert run(program) == (((), (50, 4, 30)), {})


def test_a_copy_of_a_model_has_values_of_its_own():
    # GIVEN a layer that counts its batches, copied as averages of weights are
    def program():
        layer = nn.BatchNorm1d(4)
        average = copy.deepcopy(layer)
        average.num_batches_tracked.add_(1)
        same_mode = average.num_batches_tracked.fake_mode is layer.num_batches_tracked.fake_mode
        return layer.num_batches_tracked.item(), average.num_batches_tracked.item(), same_mode

    assert run(program) == ((0, 1, True), {})


def test_large_known_tensors_are_not_kept():
    def program():
        return torch.ones(MOST_ELEMENTS[True] + 1).sum().item()

    found, assumed = run(program)
    assert found == 0.0
    assert assumed.total() == 1


@pytest.mark.parametrize(
    ("program", "error", "operator"),
    [
        (lambda: unknown().argmax().item(), DataDependentOutputException, "_local_scalar_dense"),
        (lambda: len(unknown().gt(0).nonzero()), DynamicOutputShapeException, "nonzero"),
        (lambda: unknown()[unknown() > 0], DynamicOutputShapeException, "nonzero"),
        (lambda: len(unknown().sort()[1].unique()), DynamicOutputShapeException, "unique"),
        (lambda: unknown().masked_select(unknown() > 0), DynamicOutputShapeException, "masked"),
        (lambda: torch.equal(torch.randn(5), torch.randn(5)), DataDependentOutputException, "equal"),
    ],
    ids=["argmax", "nonzero", "mask", "unique", "masked_select", "equal"],
)
def test_what_a_shape_hangs_on_is_refused(program, error, operator):
    with pytest.raises(error) as caught:
        run(program)
    assert operator in str(caught.value.func)


def test_a_batch_brings_its_values():
    # GIVEN a real batch of ids and pixels
    ids, image = torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.randn(3, 64, 64)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, SmallValues(fake) as values:
        adopted, large = values.adopt(ids), values.adopt(image)
        lengths = (adopted != 0).sum(1)
        assert lengths.tolist() == [2, 1]
        assert isinstance(large, FakeTensor)
        assert large.shape == (3, 64, 64)
        large.sum().item()
        assert values.assumptions.total() == 1


def test_values_do_not_train():
    # GIVEN weights small enough to be known
    def program():
        layer = nn.Linear(2, 2)
        with torch.no_grad():
            layer.weight.fill_(1.0)
            layer.bias.zero_()
        return layer(torch.ones(1, 2)).sum()

    total, _ = run(program)
    assert isinstance(total, FakeTensor)
    assert total.requires_grad


def test_an_operator_that_fails_for_real_is_still_faked():
    # GIVEN an index that is out of range, which only values can tell
    def program():
        return torch.arange(3).index_select(0, torch.tensor([5])).shape

    assert run(program)[0] == (1,)
