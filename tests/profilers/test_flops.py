"""Operations and bytes of operators against formulas derived by hand, on real, fake and meta tensors."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dnnmem.profilers.flops import op_cost

aten = torch.ops.aten
SIZE = st.integers(1, 6)


class Costs(TorchDispatchMode):
    """Lists `(operator, flops, moved_bytes)` of what runs inside."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls.append((str(func), *op_cost(func, args, kwargs, out)))
        return out


def calls_of(run, *, fake=False):
    with FakeTensorMode() if fake else nullcontext(), Costs() as costs:
        run()
    return costs.calls


def flops_of(run, *, fake=False):
    return sum(flops for _, flops, _ in calls_of(run, fake=fake))


def forward_and_backward(build):
    """Flops of the two halves: `build` makes inputs and returns a function of none."""
    forward = build()
    results = []
    first = flops_of(lambda: results.append(forward()))
    return first, flops_of(lambda: results[0].sum().backward())


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def cost(func, *args, **kwargs):
    return op_cost(func, args, kwargs, func(*args, **kwargs))


# Matrix products


@given(rows=SIZE, middle=SIZE, columns=SIZE, input_learns=st.booleans(), bias=st.booleans())
def test_a_linear_layer_takes_two_flops_per_weight_and_row(rows, middle, columns, input_learns, bias):
    # GIVEN y = x w' with x (rows, middle) and w (columns, middle)
    def build():
        layer = nn.Linear(middle, columns, bias=bias)
        x = torch.randn(rows, middle, requires_grad=input_learns)
        return lambda: layer(x)

    # WHEN it is run  THEN forward is one product; backward one for w, and one for x if it learns
    product = 2 * rows * middle * columns
    assert forward_and_backward(build) == (product, product * (1 + input_learns))


@given(batch=SIZE, m=SIZE, k=SIZE, n=SIZE)
def test_products_of_every_spelling(batch, m, k, n):
    a, b = torch.randn(batch, m, k), torch.randn(batch, k, n)
    product = 2 * batch * m * k * n
    assert flops_of(lambda: a @ b) == product
    # einsum makes a sum over one element a plain multiplication
    assert flops_of(lambda: torch.einsum("bmk,bkn->bmn", a, b)) == (product if k > 1 else 0)
    assert flops_of(lambda: torch.baddbmm(torch.zeros(batch, m, n), a, b)) == product
    assert flops_of(lambda: torch.addbmm(torch.zeros(m, n), a, b)) == product
    assert flops_of(lambda: torch.addmm(torch.zeros(m, n), a[0], b[0])) == product // batch
    assert flops_of(lambda: torch.zeros(m, n).addmm_(a[0], b[0])) == product // batch
    assert flops_of(lambda: a[0] @ b[0, :, 0]) == 2 * m * k
    assert flops_of(lambda: torch.addmv(torch.zeros(m), a[0], b[0, :, 0])) == 2 * m * k
    assert flops_of(lambda: a[0, 0] @ b[0, :, 0]) == 2 * k


@given(batch=SIZE, a=SIZE, b=SIZE, out=SIZE)
def test_bilinear_counts_every_cell(batch, a, b, out):
    # y[n, o] = sum over i, j of x[n, i] w[o, i, j] z[n, j]
    run = lambda: functional.bilinear(torch.randn(batch, a), torch.randn(batch, b), torch.randn(out, a, b))  # noqa: E731
    assert flops_of(run) == 2 * batch * a * b * out


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_matrix_counts_its_stored_elements():
    dense = torch.randn(30, 8)
    for sparse in (torch.eye(30).to_sparse(), torch.eye(30).to_sparse_csr()):
        assert flops_of(lambda matrix=sparse: matrix @ dense) == 2 * 30 * 8


def test_distances_count_where_they_are_a_product():
    few, many = torch.randn(5, 8), torch.randn(40, 8)
    assert flops_of(lambda: torch.cdist(few, few)) == 0
    assert flops_of(lambda: torch.cdist(many, many, p=1)) == 0
    # (x, |x|^2, 1) times (y, 1, |y|^2): two more columns
    assert flops_of(lambda: torch.cdist(many, many)) == 2 * 40 * 40 * (8 + 2)


def test_low_precision_and_grouped_products():
    a, b = meta(64, 32, dtype=torch.int8), meta(32, 16, dtype=torch.int8)
    assert cost(aten._int_mm.default, a, b)[0] == 2 * 64 * 32 * 16
    grouped = getattr(aten, "_grouped_mm", None)
    if grouped is None:
        pytest.skip("this torch has no _grouped_mm")
    tokens, experts = meta(64, 32), meta(4, 32, 16)
    # GIVEN tokens dealt out to experts  THEN each token meets one expert, however they are dealt
    assert op_cost(grouped.default, (tokens, experts), {}, meta(64, 16))[0] == 2 * 64 * 32 * 16
    assert op_cost(grouped.default, (meta(4, 8, 32), meta(32, 64)), {}, meta(8, 64))[0] == 2 * 8 * 32 * 64
    assert op_cost(grouped.default, (meta(4, 8, 32), experts), {}, meta(4, 8, 16))[0] == 2 * 4 * 8 * 32 * 16
    assert op_cost(grouped.default, (meta(8, 64), meta(64, 16)), {}, meta(4, 8, 16))[0] == 2 * 8 * 64 * 16


def test_operators_kept_whole_in_inference_mode_count_too():
    x, w, image = torch.randn(4, 8), torch.randn(16, 8), torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert flops_of(lambda: functional.linear(x, w)) == 2 * 4 * 8 * 16
        assert flops_of(lambda: torch.matmul(x, w.T)) == 2 * 4 * 8 * 16
        assert flops_of(lambda: functional.conv2d(image, torch.randn(5, 3, 3, 3))) == 2 * 2 * 5 * 6 * 6 * 3 * 9
        q = torch.randn(1, 2, 4, 8)
        assert flops_of(lambda: functional.scaled_dot_product_attention(q, q, q)) == 4 * 2 * 4 * 4 * 8


# Convolutions


@st.composite
def convolutions(draw):
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return {
        "batch": draw(st.integers(1, 3)),
        "dims": dims,
        "groups": groups,
        "inputs": groups * draw(st.integers(1, 3)),
        "outputs": groups * draw(st.integers(1, 3)),
        "size": draw(st.integers(3, 7)),
        "kernel": draw(st.integers(1, 3)),
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 2)),
        "dilation": draw(st.integers(1, 2)),
        "input_learns": draw(st.booleans()),
    }


def _forward_backward_of_convolution(c, kinds):
    def build():
        layer = kinds[c["dims"] - 1](
            *(c["inputs"], c["outputs"], c["kernel"]),
            stride=c["stride"], padding=c["padding"], dilation=c["dilation"], groups=c["groups"],
        )  # fmt: skip
        x = torch.randn(c["batch"], c["inputs"], *[c["size"]] * c["dims"], requires_grad=c["input_learns"])
        return lambda: layer(x)

    return forward_and_backward(build)


@given(convolutions())
def test_a_convolution_takes_two_flops_per_output_place_and_weight(c):
    # GIVEN the output's size  WHEN each place is a sum over inputs / groups * kernel^dims products
    reach = c["dilation"] * (c["kernel"] - 1) + 1
    assume(c["size"] + 2 * c["padding"] >= reach)
    places = ((c["size"] + 2 * c["padding"] - reach) // c["stride"] + 1) ** c["dims"]
    product = 2 * c["batch"] * c["outputs"] * places * (c["inputs"] // c["groups"]) * c["kernel"] ** c["dims"]
    # THEN forward is that; the gradients of weight and input are the same products, summed differently
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    assert _forward_backward_of_convolution(c, kinds) == (product, product * (1 + c["input_learns"]))


@given(convolutions())
def test_a_transposed_convolution_takes_two_flops_per_input_place_and_weight(c):
    out_size = (c["size"] - 1) * c["stride"] - 2 * c["padding"] + c["dilation"] * (c["kernel"] - 1) + 1
    assume(out_size >= 1)
    places = c["size"] ** c["dims"]
    product = 2 * c["batch"] * c["inputs"] * places * (c["outputs"] // c["groups"]) * c["kernel"] ** c["dims"]
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    assert _forward_backward_of_convolution(c, kinds) == (product, product * (1 + c["input_learns"]))


def test_a_frozen_weight_costs_no_gradient():
    def build():
        layer = nn.Conv2d(3, 4, 3).requires_grad_(requires_grad=False)
        x = torch.randn(2, 3, 8, 8, requires_grad=True)
        return lambda: layer(x)

    forward, backward = forward_and_backward(build)
    assert forward == backward == 2 * 2 * 4 * 6 * 6 * 3 * 9


# Attention


def attention_flops(pairs, width, value_width):
    """Forward and backward of the fused operator, where the scores are computed again."""
    return 2 * pairs * (width + value_width), 2 * pairs * (3 * width + 2 * value_width)


@given(batch=SIZE, heads=SIZE, queries=SIZE, keys=SIZE, width=SIZE, causal=st.booleans())
def test_cpu_attention_counts_its_products(batch, heads, queries, keys, width, causal):
    # GIVEN self- or cross-attention, causal or not
    def build():
        q = torch.randn(batch, heads, queries, width, requires_grad=True)
        k, v = (torch.randn(batch, heads, keys, width, requires_grad=True) for _ in "kv")
        return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    # THEN two products forward, five backward, and causality does not halve them
    assert forward_and_backward(build) == attention_flops(batch * heads * queries * keys, width, width)


@given(batch=SIZE, heads=SIZE, queries=SIZE, keys=SIZE, width=SIZE, value_width=SIZE)
def test_attention_written_by_hand_counts_its_products(batch, heads, queries, keys, width, value_width):
    def build():
        q = torch.randn(batch, heads, queries, width, requires_grad=True)
        k = torch.randn(batch, heads, keys, width, requires_grad=True)
        v = torch.randn(batch, heads, keys, value_width, requires_grad=True)
        return lambda: (q @ k.mT).softmax(-1) @ v

    # THEN nothing is computed again: four products backward
    forward = 2 * batch * heads * queries * keys * (width + value_width)
    assert forward_and_backward(build) == (forward, 2 * forward)


def test_the_math_path_counts_what_it_runs():
    # GIVEN a mask and dropout, which no fused CPU kernel serves
    def build():
        q = torch.randn(2, 4, 16, 8, requires_grad=True)
        mask = torch.ones(16, 16, dtype=torch.bool)
        return lambda: functional.scaled_dot_product_attention(q, q, q, attn_mask=mask, dropout_p=0.1)

    forward = 2 * 2 * 4 * 16 * 16 * (8 + 8)
    assert forward_and_backward(build) == (forward, 2 * forward)


def test_grouped_heads_count_by_query_heads():
    def build():
        q, kv = torch.randn(2, 8, 16, 4, requires_grad=True), torch.randn(2, 2, 16, 4, requires_grad=True)
        return lambda: functional.scaled_dot_product_attention(q, kv, kv, enable_gqa=True)

    assert forward_and_backward(build) == attention_flops(2 * 8 * 16 * 16, 4, 4)


# B batch, H heads, S queries, T keys, D width
B, H, S, T, D = 2, 4, 16, 32, 8
Q, K = (B, H, S, D), (B, H, T, D)
FORWARD, BACKWARD = attention_flops(B * H * S * T, D, D)


@pytest.mark.parametrize(
    "name", ["flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"]
)
def test_every_fused_attention_counts_the_same(name):
    q, k = meta(*Q), meta(*K)
    for suffix, args, expected in (("", (q, k, k), FORWARD), ("_backward", (q, q, k, k), BACKWARD)):
        func = getattr(aten, f"_scaled_dot_product_{name}{suffix}").default
        assert op_cost(func, args, {}, None)[0] == expected


def test_attention_below_sdpa_counts_the_same_packed_or_not():
    # GIVEN (batch, sequence, heads, width), or the same tokens packed into one sequence with cumulative lengths
    q, k = meta(B, S, H, D), meta(B, T, H, D)
    packed_q, packed_k = q.flatten(0, 1), k.flatten(0, 1)
    lengths = meta(B + 1, dtype=torch.int32)
    plain, packed = (None, None, S, T), (lengths, lengths, S, T)
    flash, flash_backward = aten._flash_attention_forward.default, aten._flash_attention_backward.default
    efficient, efficient_backward = (
        aten._efficient_attention_forward.default,
        aten._efficient_attention_backward.default,
    )
    # WHEN they are dispatched below scaled_dot_product_attention  THEN the count is that of SDPA
    for func, args in (
        (flash, (q, k, k, *plain)),
        (flash, (packed_q, packed_k, packed_k, *packed)),
        (efficient, (q, k, k, None, *plain)),
        (efficient, (packed_q[None], packed_k[None], packed_k[None], None, *packed)),
    ):
        assert op_cost(func, args, {}, None)[0] == FORWARD
    for func, args in (
        (flash_backward, (q, q, k, k, q, None, *plain)),
        (flash_backward, (packed_q, packed_q, packed_k, packed_k, packed_q, None, *packed)),
        (efficient_backward, (q, q, k, k, None, q, *plain)),
        (efficient_backward, (packed_q[None], packed_q[None], packed_k[None], packed_k[None], None, q, *packed)),
    ):
        assert op_cost(func, args, {}, None)[0] == BACKWARD


# Recurrent layers


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_recurrent_layer_counts_each_matrix_at_each_step(kind, gates, directions):
    steps, batch, inputs, hidden = 5, 3, 8, 16

    def build():
        layer = kind(inputs, hidden, num_layers=2, bidirectional=directions == 2)
        x = torch.randn(steps, batch, inputs, requires_grad=True)
        return lambda: layer(x)[0]

    # GIVEN two layers  THEN the first maps the input, the second both directions of the first
    weights = directions * gates * hidden * ((inputs + hidden) + (directions * hidden + hidden))
    forward, backward = forward_and_backward(build)
    assert forward == 2 * steps * batch * weights
    # The first hidden state is zeros that learn nothing; a cell written out in products leaves that gradient out.
    saved = 2 * batch * directions * 2 * gates * hidden * hidden
    assert 2 * forward - saved <= backward <= 2 * forward


def test_cudnn_recurrent_layers_count_the_same():
    # GIVEN what the operator gets: input (steps, batch, width), then matrices and biases of every layer
    x = meta(5, 3, 8)
    weights = [meta(64, 8), meta(64, 16), meta(64), meta(64)]
    forward = 2 * 5 * 3 * 64 * (8 + 16)
    assert op_cost(aten._cudnn_rnn.default, (x, weights, 4), {}, None)[0] == forward
    backward = aten._cudnn_rnn_backward.default
    assert op_cost(backward, (x, weights, 4, [True, True, True, True]), {}, None)[0] == 2 * forward
    assert op_cost(backward, (x, weights, 4, [True, True, True, False]), {}, None)[0] == forward


# What counts nothing, and agreement with others


ELEMENT_WISE = {
    "arithmetic": lambda x: x * x + x.exp(),
    "softmax": lambda x: x.softmax(-1),
    "norm": lambda x: functional.layer_norm(x, (8,)),
    "sum": lambda x: x.sum(),
    "dropout": functional.dropout,
    "gelu": functional.gelu,
    "cross_entropy": lambda x: functional.cross_entropy(x, torch.zeros(4, dtype=torch.long)),
}


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_element_wise_operators_count_no_flops_but_move_bytes(name):
    x = torch.randn(4, 8, requires_grad=True)
    calls = calls_of(lambda: ELEMENT_WISE[name](x).sum().backward())
    assert sum(flops for _, flops, _ in calls) == 0
    assert sum(moved for _, _, moved in calls) > x.nbytes


def _step_of_small_network():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8), nn.Unflatten(1, (2, 4)),
    )  # fmt: skip
    x = model(torch.ones(2, 3, 8, 8))
    attended = functional.scaled_dot_product_attention(x, x, x)
    optimizer = torch.optim.AdamW(model.parameters())
    functional.cross_entropy(attended.flatten(1), torch.tensor([0, 1])).backward()
    optimizer.step()


def test_fake_tensors_cost_what_real_ones_cost():
    real, fake = calls_of(_step_of_small_network), calls_of(_step_of_small_network, fake=True)
    names = {name for name, *_ in real} & {name for name, *_ in fake}
    assert len(names) > 30
    by_name = [[call for call in calls if call[0] in names and call[1]] for calls in (real, fake)]
    assert by_name[0] == by_name[1]
    assert sum(flops for _, flops, _ in real) == sum(flops for _, flops, _ in fake) > 0


def test_the_counter_of_torch_agrees_where_it_is_right():
    # GIVEN products and convolutions without groups
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Flatten(), nn.Linear(512, 8)
    )
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert flops_of(lambda: model(x).sum().backward()) == counter.get_total_flops()


# Bytes, in elements of 4 bytes unless said otherwise


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
