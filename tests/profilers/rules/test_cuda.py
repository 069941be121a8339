"""A fake run for a GPU takes CUDA's paths; without one it stays as it is, and so does the process afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.trace import Kind, Origin
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.rules.cuda import cuda_rules
from tests.profilers.recorded import loss_step, on_fake, ops_named, target_of

WIDTH, HEADS, LENGTH = 64, 2, 128


class Attends(nn.Module):
    """A projection, attention and a root-mean-square norm."""

    def __init__(self):
        super().__init__()
        self.into, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.RMSNorm(WIDTH)

    def forward(self, x):
        parts = self.into(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.norm(functional.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2))


def half_precision(model, batch):
    with torch.autocast("cuda", torch.bfloat16):
        return model(batch).float().pow(2).mean()


def plain(model, batch):
    return model(batch).pow(2).mean()


def sequences(batch_size):
    return torch.randn(batch_size, LENGTH, WIDTH)


def on(gpu, loss, make_model=Attends):
    target = target_of(make_model, sequences, loss_step(loss))
    return profile_fake(target, steps=2, origin=Origin(gpu=gpu), on_step=lambda _: None)[0]


@pytest.mark.parametrize(
    ("gpu", "loss", "kernel"),
    [
        ("a100-sxm-40gb", half_precision, "aten._scaled_dot_product_flash_attention.default"),
        ("a100-sxm-40gb", plain, "aten._scaled_dot_product_efficient_attention.default"),
        ("t4", plain, "aten._scaled_dot_product_efficient_attention.default"),
    ],
)
def test_attention_is_the_gpus(gpu, loss, kernel):
    trace = on(gpu, loss)
    assert len(ops_named(trace, kernel)) == 1
    assert any(f"kernels of {gpu}" in note and "attention by" in note for note in trace.origin.notes)


def test_nothing_as_large_as_all_pairs_is_kept():
    trace = on("a100-sxm-40gb", half_precision)
    pairs = 4 * HEADS * LENGTH * LENGTH * 2
    assert all(s.nbytes < pairs for s in trace.storages.values() if s.saved)


def test_each_thread_that_multiplies_has_a_workspace():
    trace = on("a100-sxm-40gb", plain)
    kept = [s for s in trace.storages.values() if s.name == "workspace"]
    assert [(s.kind, s.nbytes) for s in kept] == [(Kind.TEMP, 8_519_680)] * 2
    assert {s.id for s in kept} <= trace.pinned
    trace.check()


def test_without_products_there_is_none():
    trace = on("a100-sxm-40gb", plain, lambda: nn.LayerNorm(WIDTH))
    assert not [s for s in trace.storages.values() if s.name == "workspace"]


def test_optimizers_go_over_all_parameters_at_once():
    trace = on("a100-sxm-40gb", plain)
    assert ops_named(trace, "aten._foreach_sqrt.default")
    assert not ops_named(on_fake(target_of(Attends, sequences, loss_step(plain))).trace, "aten._foreach_sqrt.default")


def test_a_bias_gradient_has_its_buffer():
    # GIVEN a sum over many rows, which several thread blocks share
    target = target_of(lambda: nn.Linear(WIDTH, WIDTH), sequences, loss_step(plain), batch_size=256)
    trace = profile_fake(target, steps=2, origin=Origin(gpu="a100-sxm-40gb"), on_step=lambda _: None)[0]
    sums = [op for op in ops_named(trace, "aten.sum.dim_IntList") if any(e.storage < 0 for e in op.events)]
    assert len(sums) == 1


def test_afterwards_all_is_as_before():
    def state():
        return (
            torch.cuda.is_available,
            torch.is_autocast_enabled,
            torch._C._dispatch_has_kernel_for_dispatch_key("aten::exp", "AutocastCPU"),
            torch.get_autocast_dtype("cuda"),
        )

    before = state()
    with cuda_rules(find_device("t4")):
        assert state() != before
    assert state() == before
    assert functional.dropout(torch.ones(2), 0.5).shape == (2,)
