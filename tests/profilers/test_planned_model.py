"""Models built without memory: what is real, what is not, and what they are filled with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from dnnmem.profilers.planned_model import built_on_device, built_without_memory, fill
from tests.estimator.passes.steps import LLAMA, SIZES, sample


def test_parameters_have_no_memory_and_buffers_are_right():
    # GIVEN a model whose rotary table is no parameter, and is not saved either
    gpt = sample("gpt")
    said = []
    bare = built_without_memory(lambda: gpt.make_model(**SIZES, **LLAMA, layers=2), said.append)
    real = gpt.make_model(**SIZES, **LLAMA, layers=2)
    # THEN all parameters are on meta under the same names, and the table has its values
    assert not said
    assert all(p.is_meta for p in bare.parameters())
    assert list(bare.state_dict()) == list(real.state_dict())
    assert torch.equal(bare.rotations, real.rotations)
    # AND once filled it trains
    fill(bare, torch.device("cpu"))
    batch = gpt.make_batch(2, 16, SIZES["vocab"])
    loss = gpt.make_loss(bare(batch[0]), batch)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bare.parameters())
    # AND other models are built as before
    assert not nn.Linear(1, 1).weight.is_meta


def test_shared_parameters_stay_shared():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            shared = nn.Parameter(torch.zeros(3, 3))
            self.one, self.two = nn.Module(), nn.Module()
            self.one.weight = shared
            self.two.weight = shared

    model = built_without_memory(Twice, lambda _: None)
    assert model.one.weight is model.two.weight
    assert model.one.weight.is_meta


def test_code_that_reads_parameters_builds_in_memory():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.scale = self.weight.sum().item()

    said = []
    model = built_without_memory(Reads, said.append)
    assert model.scale == 3
    assert not model.weight.is_meta
    assert len(said) == 1


def test_what_a_default_device_does_not_reach_is_moved():
    # GIVEN a module whose code makes tensors where no default device has a say
    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.FloatTensor(3, 3))
            self.register_buffer("table", torch.from_numpy(np.ones(3)))
            self.inner = nn.Linear(3, 3)

    with torch.device("meta"):
        model = built_on_device(Old, "meta")

    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
