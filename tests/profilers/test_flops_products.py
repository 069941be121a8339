"""Products, convolutions and recurrent layers against formulas derived by hand, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from dnnmem.profilers.flops import op_cost
from tests.profilers.costs import aten, cost, flops_of, forward_and_backward, meta

SIZE = st.integers(1, 6)


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
