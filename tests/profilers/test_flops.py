"""What operators cost over whole steps of many models: nothing for what is no product, the same on fake tensors."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.models.fake import Fake
from tests.models.zoo import ZOO
from tests.profilers.costs import Costs, calls_of

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


WITH_VALUES = sorted(name for name, entry in ZOO.items() if not entry.needs_values)

DIFFER = {
    "lstm": "oneDNN keeps a workspace of its own size, which fake tensors do not know",
    "clipping": "clip_grad_norm_ takes fake tensors one by one, real ones as a list",
}
"""Models whose fake step moves other bytes than the real one, and why."""


def _second_step(entry, mode):
    """Costs of the second step, when optimizer states exist."""
    with mode, Costs() as costs:
        model, batch = entry.make_model(), entry.make_batch(4)
        optimizer = entry.make_optimizer(model.parameters())
        entry.train_step(model, batch, optimizer)
        costs.calls.clear()
        entry.train_step(model, batch, optimizer)
    return [call for call in costs.calls if not call[0].startswith("prim.")]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", WITH_VALUES)
def test_fake_tensors_cost_what_real_ones_cost(name):
    real, fake = _second_step(ZOO[name], nullcontext()), _second_step(ZOO[name], Fake())
    assert sum(flops for _, flops, _ in real) == sum(flops for _, flops, _ in fake) > 0
    assert (real == fake) == (name not in DIFFER)


@pytest.mark.parametrize(
    "name", ["cnn", "resnet", "segmentation_unet", "attention_by_hand", "bert", "t5", "gnn", "lora", "custom_function"]
)
def test_the_counter_of_torch_agrees_where_it_is_right(name):
    # GIVEN models without CPU attention and recurrent layers, which it misses, and without grouped convolutions
    entry = ZOO[name]
    model, batch = entry.make_model(), entry.make_batch(4)
    with FlopCounterMode(display=False) as counter, Costs() as costs:
        entry.train_step(model, batch, entry.make_optimizer(model.parameters()))
    assert sum(flops for _, flops, _ in costs.calls) == counter.get_total_flops()
