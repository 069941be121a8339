"""Bytes that operators must move, against counts done by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnmem.profilers.flops import op_cost
from tests.profilers.costs import aten, calls_of, cost, meta

# Sizes are in elements of 4 bytes unless said otherwise


def f32(elements):
    return 4 * elements


def name_of(value):
    return f"{value}" if isinstance(value, (torch._ops.OpOverload, int)) else ""


@pytest.mark.parametrize(
    ("func", "args", "expected"),
    [
        (aten.mm.default, (meta(4, 8), meta(8, 2)), f32(32 + 16 + 8)),
        (aten.mul.Tensor, (meta(4, 8), meta(8)), f32(32 + 8 + 32)),
        (aten.add.Tensor, (meta(4, 8), meta(8).expand(4, 8)), f32(32 + 8 + 32)),
        (aten.sub.Tensor, (meta(4, 8), meta(1).expand(4, 8)), f32(32 + 1 + 32)),
        (aten.div.Tensor, (meta(4, 8), meta(16).as_strided((4, 8), (1, 1))), f32(32 + 11 + 32)),
        (aten.relu.default, (meta(4, 8)[:, :3],), f32(12 + 12)),
        (aten._to_copy.default, (meta(4, 8),), f32(32 + 32)),
        (aten.cat.default, ([meta(4, 8), meta(2, 8)],), f32(48 + 48)),
        (aten.add_.Tensor, (meta(4, 8), meta(8)), f32(32 + 8 + 32)),
        (aten.copy_.default, (meta(4, 8), meta(8)), f32(8 + 32)),
        (aten.zero_.default, (meta(4, 8),), f32(32)),
        (aten.zeros_like.default, (meta(4, 8),), f32(32)),
        (aten.zeros.default, ([4, 8],), f32(32)),
        (aten.native_dropout.default, (meta(4, 8), 0.5, True), f32(32 + 32) + 32),
        (aten._softmax.default, (meta(4, 8), -1, False), f32(32 + 32)),
        (aten._softmax.default, (meta(8).expand(4, 8), -1, False), f32(8 + 32 + 32 + 32)),
        (aten.slice_backward.default, (meta(4, 2), [4, 8], 1, 0, 2, 1), f32(32 + 8 + 8)),
    ],
    ids=name_of,
)
def test_bytes_are_distinct_elements_read_and_written(func, args, expected):
    kwargs = {"device": "meta"} if func is aten.zeros.default else {}
    assert cost(func, *args, **kwargs)[1] == expected


def test_one_tensor_given_twice_is_read_once():
    x = meta(4, 8)
    assert cost(aten.mul.Tensor, x, x)[1] == f32(32 + 32)


FREE = {
    "view": lambda x: x.view(8, 4),
    "t": lambda x: x.t(),
    "slice": lambda x: x[1:],
    "expand": lambda x: x.expand(2, 4, 8),
    "detach": lambda x: x.detach(),
    "split": lambda x: x.split(2),
    "unsafe_split": lambda x: x.unsafe_split(2),
    "unbind": lambda x: x.unbind(),
    "t_": lambda x: x.t_(),
    "empty_like": torch.empty_like,
    "new_empty": lambda x: x.new_empty(3),
}


@pytest.mark.parametrize("name", FREE)
def test_views_and_empty_memory_move_nothing(name):
    x = torch.randn(4, 8)
    calls = calls_of(lambda: FREE[name](x))
    assert calls
    assert sum(moved for *_, moved in calls) == 0


def test_out_arguments_are_written_and_not_read():
    x, out = torch.randn(4, 8), torch.empty(4, 8)
    assert calls_of(lambda: torch.exp(x, out=out))[0][2] == f32(32 + 32)


def test_an_embedding_reads_the_rows_it_returns():
    table, tokens = meta(1000, 8), meta(3, 5, dtype=torch.long)
    assert cost(aten.embedding.default, table, tokens)[1] == f32(15 * 8 * 2) + 8 * 15
    # GIVEN more tokens than rows  THEN a row is read once
    small = meta(2, 8)
    assert cost(aten.embedding.default, small, tokens)[1] == f32(2 * 8 + 15 * 8) + 8 * 15
    bag = aten._embedding_bag.default
    out = bag(table, tokens.flatten(), meta(3, dtype=torch.long))
    assert op_cost(bag, (table, tokens.flatten(), meta(3, dtype=torch.long)), {}, out)[1] < table.nbytes


@pytest.mark.parametrize(
    ("func", "args", "expected"),
    [
        (aten.index_select.default, (0, meta(5, dtype=torch.long)), f32(40 + 40) + 40),
        (aten.index.Tensor, ([meta(5, dtype=torch.long)],), f32(40 + 40) + 40),
        (aten.gather.default, (0, meta(5, 8, dtype=torch.long)), f32(40 + 40) + 320),
        (aten.index_add_.default, (0, meta(5, dtype=torch.long), meta(5, 8)), f32(40 + 2 * 40) + 40),
        (aten.scatter_add_.default, (0, meta(5, 8, dtype=torch.long), meta(5, 8)), f32(40 + 2 * 40) + 320),
        (aten.scatter_.value, (0, meta(5, 8, dtype=torch.long), 1.0), f32(40) + 320),
        (aten.index_copy_.default, (0, meta(5, dtype=torch.long), meta(5, 8)), f32(40 + 40) + 40),
        (aten.index_fill_.int_Scalar, (0, meta(5, dtype=torch.long), 0.0), f32(40) + 40),
        (aten.index_put_.default, ([meta(5, dtype=torch.long)], meta(5, 8)), f32(40 + 40) + 40),
        (aten.index_put_.default, ([None, meta(2, dtype=torch.long)], meta(1)), f32(1 + 2000) + 16),
        (aten.index_put_.default, ([meta(5, dtype=torch.long)], meta(5, 8), True), f32(40 + 2 * 40) + 40),
        (aten.index_put_.default, ([meta(1000, dtype=torch.bool)], meta(1)), f32(1 + 8000) + 1000),
    ],
    ids=name_of,
)
def test_indexing_touches_rows_and_not_the_table(func, args, expected):
    assert cost(func, meta(1000, 8), *args)[1] == expected


def test_cross_entropy_reads_one_probability_a_row():
    logits, labels = meta(4, 1000), meta(4, dtype=torch.long)
    forward = aten.nll_loss_forward.default
    args = (logits, labels, None, 1, -100)
    assert cost(forward, *args)[1] == f32(4) + 8 * 4 + f32(1 + 1)
    backward = aten.nll_loss_backward.default
    assert cost(backward, meta(()), *args, meta(()))[1] == f32(1) + 8 * 4 + f32(1) + logits.nbytes


def test_a_fused_optimizer_reads_gradients_and_updates_the_rest():
    lists = [[meta(8), meta(4)] for _ in range(4)]
    steps = [meta(()), meta(())]
    scalars = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0.0, "eps": 1e-8}
    args, kwargs = (*lists, [], steps), {**scalars, "amsgrad": False, "maximize": False}
    read, written = 12 * 4 + 2, 12 * 3
    assert op_cost(aten._fused_adamw_.default, args, kwargs, None)[1] == f32(read + written)
    # WHEN it unscales, it writes the gradients too
    kwargs |= {"grad_scale": meta(()), "found_inf": meta(())}
    assert op_cost(aten._fused_adamw_.default, args, kwargs, None)[1] == f32(read + 2 + written + 12)


def test_lists_of_tensors_count_each():
    lists = [meta(8), meta(4)], [meta(8), meta(4)]
    assert op_cost(aten._foreach_add_.List, lists, {}, None)[1] == f32(12 * 3)
    assert op_cost(aten._foreach_copy_.default, lists, {}, None)[1] == f32(12 * 2)
    assert op_cost(aten._foreach_zero_.default, lists[:1], {}, None)[1] == f32(12)


def test_sparse_gradients_count_their_rows():
    # GIVEN an embedding with sparse gradients
    table = nn.Embedding(1000, 8, sparse=True)
    table(torch.arange(5)).sum().backward()
    grad = table.weight.grad
    # WHEN it is multiplied  THEN 5 rows of 8 and 5 coordinates are read and written, not the table
    assert calls_of(lambda: grad * 2.0)[0][2] < table.weight.nbytes // 10


def test_a_number_taken_out_reads_one_element():
    x = torch.zeros((), dtype=torch.float64)
    assert calls_of(x.item)[-1][1:] == (0, 8)


def test_asking_for_a_device_moves_nothing():
    # Fake tensors dispatch even this.
    x = meta(4, 8)
    assert op_cost(torch.ops.prim.device.default, (x,), {}, x.device) == (0, 0)
