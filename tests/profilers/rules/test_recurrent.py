"""Recurrent layers of a fake run for a GPU are cuDNN's: their operators, their memory and when they are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.trace import Kind, Origin
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.faking import Faking
from dnnmem.profilers.rules.gpu import gpu_of
from tests.profilers.recorded import loss_step, ops_named, target_of

WIDTH, STEPS, BATCH, LAYERS = 64, 32, 8, 2
SIZES = [8, 8, 5, 2, 1]
GPU = "h100-sxm-80gb"
HOPPER = find_device(GPU)
FORWARD, BACKWARD = "aten._cudnn_rnn.default", "aten._cudnn_rnn_backward.default"


class Reads(nn.Module):
    """Recurrent layers over sequences, batch first, whose inputs need gradients."""

    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.into = nn.Linear(WIDTH, WIDTH)
        self.layers = kind(WIDTH, WIDTH, LAYERS, batch_first=True, **options)

    def forward(self, x):
        return self.layers(self.into(x))[0]


class Skips(Reads):
    """The same over packed sequences: of 5 steps, 8 and then fewer of them."""

    def forward(self, x):
        sizes = torch.tensor(SIZES)
        return self.layers(rnn.PackedSequence(self.into(x).flatten(0, 1)[: sum(SIZES)], sizes))[0].data


def plain(model, batch):
    return model(batch).float().pow(2).mean()


def half_precision(model, batch):
    with torch.autocast("cuda", torch.bfloat16):
        return plain(model, batch)


def sequences(batch_size):
    return torch.randn(batch_size, STEPS, WIDTH)


def recorded(make_model, loss=plain, gpu=GPU):
    target = target_of(make_model, sequences, loss_step(loss), batch_size=BATCH)
    return profile_fake(target, steps=2, origin=Origin(gpu=gpu), on_step=lambda _: None)[0]


def events(trace, name):
    (op,) = ops_named(trace, name)
    return [event.nbytes for event in op.events]


def test_forward_and_backward_allocate_as_torchs_do():
    # GIVEN two layers  WHEN they are recorded
    trace = recorded(Reads)
    x, states = BATCH * STEPS * WIDTH * 4, LAYERS * BATCH * WIDTH * 4
    weights = LAYERS * 4 * (2 * WIDTH + 2) * WIDTH * 4
    workspace = weights - LAYERS * 8 * WIDTH * 4 + LAYERS * BATCH * WIDTH * 44 * 4
    reserve = BATCH * STEPS * (LAYERS * WIDTH * 5 + WIDTH) * 4
    # THEN forward copies its input step by step, and keeps output, states and reserve
    assert events(trace, FORWARD)[:8] == [x, x, states, states, workspace, reserve, -workspace, -x]
    # THEN backward makes zeros for the states' gradients and one block for those of all weights
    made = events(trace, BACKWARD)[:18]
    first = [states, states, x, x, x, states, states, workspace, -workspace, -x, -x]
    assert made[: len(first) + 5] == [*first, x, weights, workspace, -workspace, -x]
    assert made[16:18] == [-states, -states]
    trace.check()


def test_weights_are_one_block_with_one_gradient():
    trace = recorded(Reads)
    nbytes = LAYERS * 4 * (2 * WIDTH + 2) * WIDTH * 4
    owned = [s for s in trace.storages.values() if s.module == ("layers",)]
    assert [s.nbytes for s in owned if s.kind is Kind.PARAM] == [nbytes]
    assert nbytes in {s.nbytes for s in owned if s.kind is Kind.GRAD}


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_networks_of_one_state(kind):
    trace = recorded(lambda: Reads(kind, bidirectional=True))
    states = 2 * LAYERS * BATCH * WIDTH * 4
    assert events(trace, FORWARD).count(states) == 1
    assert ops_named(trace, BACKWARD)


def test_dropout_keeps_states_of_random_numbers():
    trace = recorded(lambda: Reads(dropout=0.5))
    kept = [s for s in trace.storages.values() if s.nbytes == 132 * 2048 * 48]
    assert len(kept) == 1
    assert kept[0].id in trace.pinned


def test_autocast_copies_the_weights_to_float16():
    # GIVEN bfloat16 asked for  WHEN recorded  THEN every step copies all weights, as one block of half the size
    trace = recorded(Reads, half_precision)
    (op,) = ops_named(trace, FORWARD)
    block = trace.storages[op.reads[1]]
    assert (block.dtype, block.nbytes) == ("float16", LAYERS * 4 * (2 * WIDTH + 2) * WIDTH * 2)
    assert block.saved


def test_packed_sequences_hold_no_padding_but_their_reserve_does():
    trace = recorded(Skips)
    output, reserve = sum(SIZES) * WIDTH * 4, len(SIZES) * SIZES[0] * (LAYERS * WIDTH * 5 + WIDTH) * 4
    assert events(trace, FORWARD)[0] == output
    assert reserve in events(trace, FORWARD)
    assert ops_named(trace, BACKWARD)


def test_bfloat16_weights_are_put_together_at_each_call():
    setup = gpu_of(HOPPER).setup
    if setup.torch < (2, 10, 0) or setup.cudnn < 91300:
        pytest.skip("this cuDNN's recurrent networks refuse bfloat16")
    trace = recorded(lambda: Reads().bfloat16(), lambda model, batch: plain(model, batch.bfloat16()))
    weights = LAYERS * 4 * (2 * WIDTH + 2) * WIDTH * 2
    assert events(trace, FORWARD)[4] == weights


def test_without_biases_each_gradient_is_its_own():
    trace = recorded(lambda: Reads(bias=False))
    (op,) = ops_named(trace, BACKWARD)
    gradients = [s for s in trace.storages.values() if s.module == ("layers",) and s.kind is Kind.GRAD]
    assert {s.nbytes for s in gradients} == {4 * WIDTH * WIDTH * 4}
    assert op.events


@pytest.mark.parametrize("why", ["mi300x", "off"])
def test_where_cudnn_is_not_the_layers_are_the_cpus(why):
    with torch.backends.cudnn.flags(enabled=why != "off"):
        trace = recorded(Reads, gpu=GPU if why == "off" else why)
    assert not ops_named(trace, FORWARD)
    assert any("recurrent layers are the CPU's" in note for note in trace.origin.notes)


def test_the_report_says_that_sizes_are_a_model():
    assert any("scratch memory of recurrent layers is a model" in note for note in recorded(Reads).origin.notes)


def test_moving_weights_apart_costs_a_block_at_each_call():
    # GIVEN weights in one block  WHEN one of them is replaced  THEN they are not, until they are flattened again
    with Faking(HOPPER).active():
        layers = nn.LSTM(WIDTH, WIDTH)
        blocks = [one_block(layers)]
        layers.weight_hh_l0.data = layers.weight_hh_l0.data.clone()
        blocks.append(one_block(layers))
        layers.flatten_parameters()
        blocks.append(one_block(layers))
    assert blocks == [True, False, True]


def one_block(layers):
    return len({w.untyped_storage()._cdata for w in layers.parameters()}) == 1


def test_backward_needs_training_mode():
    with Faking(HOPPER).active():
        layers = nn.LSTM(WIDTH, WIDTH).eval()
        out = layers(torch.randn(STEPS, BATCH, WIDTH))[0]
        with pytest.raises(RuntimeError, match="training mode"):
            out.sum().backward()


class Unrolled(nn.Module):
    """A cell that is called for each of four time steps."""

    def __init__(self, kind):
        super().__init__()
        self.into, self.cell = nn.Linear(WIDTH, WIDTH), kind(WIDTH, WIDTH)

    def forward(self, x):
        state = torch.zeros(len(x), WIDTH, device=x.device)
        state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for t in range(4):
            state = self.cell(self.into(x[:, t]), state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("loss", [plain, half_precision])
@pytest.mark.parametrize(
    ("kind", "kernel", "kept"), [(nn.LSTMCell, "_thnn_fused_lstm_cell", 4), (nn.GRUCell, "_thnn_fused_gru_cell", 5)]
)
def test_a_cell_is_two_products_and_one_kernel_that_keeps_its_gates(loss, kind, kernel, kept):
    # GIVEN a cell  WHEN its step is recorded for a GPU
    trace = recorded(lambda: Unrolled(kind), loss)
    calls, back = ops_named(trace, f"aten.{kernel}.default"), [op for op in trace.ops if f"{kernel}_back" in op.name]
    # THEN each call is one kernel, and one that goes back, whose gates stay in between; nothing else of the cell does
    assert (len(calls), len(back)) == (4, 4)
    size = BATCH * WIDTH * (2 if loss is half_precision else 4)
    assert sorted(trace.storages[i].nbytes for i in calls[0].writes) == sorted(
        [size, kept * size, *[size] * (kind is nn.LSTMCell)]
    )
    assert {op.name for op in trace.ops if op.module == ("cell",) and "mm" not in op.name} <= {
        f"aten.{kernel}.default", back[0].name, "aten._to_copy.default", "aten.add.Tensor", "aten.add_.Tensor",
        "aten.sum.dim_IntList",
    }  # fmt: skip
