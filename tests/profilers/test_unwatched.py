"""What a watched step does otherwise is undone: its blocks are those of a bare run, whatever the operators."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.profilers.recorded import allocations, bare_allocations, on_fake, ops_named, target_of, watched

ADDED, SUM = "aten.add_.Tensor", "aten.add.Tensor"


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


class Twice(torch.autograd.Function):
    """A function that sums in Python, where nothing is done in place."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x + grad * x


def shared(h):
    """Four uses: four gradients of one tensor to add up."""
    return (h * h).sum() + h.sin().sum() + h.cos().sum()


def with_hidden(x, loss):
    return loss(x.exp())


def attention(x, **options):
    return F.scaled_dot_product_attention(x, x, x, **options).sum()


def penalty(x):
    """A penalty on the norm of a gradient: backward through backward."""
    (grad,) = torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)
    return grad.norm()


X, IMAGE, BIAS = (8, 16), (4, 6, 12, 12), (5,)
INDEX = [0, 1, 1, 2, 5, 5, 5, 7]
LOSSES = {
    "one use": lambda x, _: x.exp().sum(),
    "x * x": lambda x, _: (x.exp() ** 2 * x.exp()).sum(),
    "shared input": lambda x, _: shared(x.exp()),
    "shared leaf": lambda x, _: shared(x),
    "the same tensor twice in one operator": lambda x, _: with_hidden(x, lambda h: (h * h).sum()),
    "views of it": lambda x, _: with_hidden(x, lambda h: (h[:4] * h[4:]).sum() + h.T.sum() + h.sum()),
    "a broadcast sum": lambda x, _: with_hidden(x, lambda h: (h + h.sum()).sum()),
    "python sums": lambda x, _: Twice.apply(x.exp()).sum(),
    "python sums and shared": lambda x, _: with_hidden(x, lambda h: Twice.apply(h).sum() + h.sin().sum()),
    "linear": lambda x, _: F.linear(x, leaf(5, 16), leaf(5)).sum(),
    "linear on images": lambda _, y: F.linear(y, leaf(5, 12), leaf(5)).sum(),
    "linear on a transposed image": lambda _, y: F.linear(y.transpose(1, 3), leaf(5, 6), leaf(5)).sum(),
    "linear on part of one": lambda _, y: F.linear(y.transpose(1, 3)[:, :2], leaf(5, 6), leaf(5)).sum(),
    "a product and a sum by hand": lambda x, _: (x @ leaf(16, 5) + leaf(5)).sum(),
    "bilinear": lambda x, _: F.bilinear(x, x, leaf(3, 16, 16), leaf(3)).sum(),
    "attention": lambda _, y: attention(y),
    "attention with a mask": lambda _, y: attention(y, attn_mask=torch.ones(12, 12).tril() > 0, dropout_p=0.1),
    "attention with a learnt mask": lambda _, y: attention(y, attn_mask=leaf(12, 12)),
    "attention by hand": lambda _, y: ((y @ y.mT + torch.zeros(12, 12)).softmax(-1) @ y).sum(),
    "index": lambda x, _: x[torch.tensor(INDEX)].sum(),
    "index_select": lambda x, _: x.index_select(0, torch.tensor(INDEX)).sum(),
    "gather": lambda x, _: x.gather(1, torch.zeros(8, 3, dtype=torch.long)).sum(),
    "take": lambda x, _: x.take(torch.tensor(INDEX)).sum(),
    "embedding": lambda x, _: F.embedding(torch.tensor(INDEX), x).sum(),
    "max": lambda x, _: x.max(1)[0].sum(),
    "sort": lambda x, _: x.sort()[0].sum(),
    "topk": lambda x, _: x.topk(3)[0].sum(),
    "median": lambda x, _: x.median(1)[0].sum(),
    "scatter": lambda x, _: torch.zeros(8, 16).scatter(1, torch.zeros(8, 16, dtype=torch.long), x).sum(),
    "index_add": lambda x, _: torch.zeros(16, 16).index_add(0, torch.arange(8), x).sum(),
    "index_put": lambda x, _: x.clone().index_put((torch.tensor(INDEX),), x[:8]).sum(),
    "select and slice": lambda x, _: (x[0] + x[1]).sum() + (x[:4] * x[4:]).sum(),
    "cumsum": lambda x, _: x.cumsum(0).sum(),
    "norm": lambda x, _: x.norm(dim=1).sum() + x.norm(),
    "logsumexp": lambda x, _: x.logsumexp(1).sum(),
    "layer norm": lambda x, _: F.layer_norm(x, (16,), leaf(16), leaf(16)).sum(),
    "convolution": lambda _, y: F.conv2d(y, leaf(8, 6, 3, 3), leaf(8)).sum(),
    "weighted binary cross entropy": lambda x, _: F.binary_cross_entropy_with_logits(
        x, torch.ones(8, 16), pos_weight=torch.ones(16)
    ),
    "double backward": lambda x, _: penalty(x),
    "checkpoint": lambda x, _: checkpoint(shared, x.exp(), use_reentrant=False),
    "reentrant checkpoint": lambda x, _: checkpoint(shared, x.exp(), use_reentrant=True),
}


class Leaves(nn.Module):
    def __init__(self):
        super().__init__()
        self.x, self.image = nn.Parameter(torch.randn(X)), nn.Parameter(torch.randn(IMAGE))


def step_of(loss):
    def step(model, _batch, _optimizer):
        loss(model.x, model.image).backward()
        model.zero_grad()

    return step


@pytest.fixture(scope="module", name="bare")
def _bare():
    """What each makes when nobody watches."""
    models = {name: Leaves() for name in LOSSES}
    return bare_allocations({n: partial(step_of(loss), models[n], None, None) for n, loss in LOSSES.items()})


@pytest.mark.parametrize("name", LOSSES)
def test_a_watched_step_makes_the_blocks_of_a_bare_one(name, bare):
    target = target_of(Leaves, torch.zeros, step_of(LOSSES[name]))
    real, fake = watched(target), on_fake(target).trace
    # THEN watching adds no block (kernels of the CPU may have more of their own), and a fake run makes the same
    assert not allocations(real) - bare[name]
    assert allocations(fake) == allocations(real)
    assert [op.name for op in fake.ops] == [op.name for op in real.ops]


def sums(loss):
    trace = on_fake(target_of(Leaves, torch.zeros, step_of(loss))).trace
    backward = [op for op in trace.ops if op.phase.value == "backward"]
    return [op.name for op in backward if op.name in {ADDED, SUM}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one use", []),
        ("shared input", [ADDED, ADDED, ADDED]),
        ("the same tensor twice in one operator", [ADDED]),
        ("python sums", [SUM]),
        ("python sums and shared", [SUM, ADDED]),
    ],
)
def test_gradients_of_one_tensor_are_added_into_the_first(name, expected):
    # GIVEN a tensor with several uses  THEN autograd sums into the first gradient; Python code does not
    assert sums(LOSSES[name]) == expected


def test_a_view_is_not_summed_into():
    # GIVEN a first gradient that is a number in every place, a view: that of sum, which comes last and so goes first
    assert sums(lambda x, _: with_hidden(x, lambda h: h.sin().sum() + h.sum())) == [SUM]
    # THEN the sum is a new block; not so where the view is what is added
    assert sums(lambda x, _: with_hidden(x, lambda h: h.sum() + h.sin().sum())) == [ADDED]


def test_a_gradient_that_somebody_keeps_is_not_summed_into():
    # GIVEN a function whose backward keeps the gradient that it returns
    kept = []

    class Keeping(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

        @staticmethod
        def backward(_ctx, grad):
            kept[:] = [grad * 2]
            return kept[0]

    assert sums(lambda x, _: with_hidden(x, lambda h: h.sin().sum() + Keeping.apply(h).sum())) == [SUM]
    assert sums(lambda x, _: with_hidden(x, lambda h: Keeping.apply(h).sum() + h.sin().sum())) == [ADDED]


def test_the_bias_is_added_into_the_product():
    # GIVEN a linear layer over a view that is not contiguous
    def loss(_, y):
        return F.linear(y.transpose(1, 3), leaf(5, 6), leaf(5)).sum()

    trace = on_fake(target_of(Leaves, torch.zeros, step_of(loss))).trace
    (product,) = [
        op for op in trace.ops if op.name in {"aten.mm.default", "aten.bmm.default"} and op.phase == "forward"
    ]
    # THEN the sum writes what the product made
    (total,) = [op for op in trace.ops if op.name == ADDED and op.phase == "forward"]
    assert total.writes[0] in product.writes


def test_a_sum_by_hand_is_none_of_linear():
    trace = on_fake(target_of(Leaves, torch.zeros, step_of(LOSSES["a product and a sum by hand"]))).trace
    assert [op.phase for op in ops_named(trace, SUM)] == ["forward"]


@pytest.mark.parametrize(
    ("name", "filled"),
    [("index", "aten._index_put_impl_.default"), ("gather", "aten.scatter_add_.default"), ("max", "aten.scatter_.src")],
)
def test_backward_of_indexing_fills_its_zeros(name, filled):
    trace = on_fake(target_of(Leaves, torch.zeros, step_of(LOSSES[name]))).trace
    (fill,) = ops_named(trace, filled)
    # THEN no block is made beside the zeros
    assert [event for event in fill.events if event.nbytes > 0] == []
