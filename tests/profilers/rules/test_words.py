"""Programs may name CUDA in a fake run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnnmem.estimator.devices import find_device
from dnnmem.profilers.rules.words import cuda_words


@pytest.fixture(autouse=True)
def _words():
    with cuda_words(find_device("a100-sxm-40gb")):
        yield


MAKERS = {
    "cuda()": lambda: torch.ones(2).cuda(),
    "to cuda": lambda: torch.ones(2).to("cuda"),
    "to cuda:0 and a type": lambda: torch.ones(2).to("cuda:0", torch.float32),
    "to a device": lambda: torch.ones(2).to(device=torch.device("cuda")),
    "made there": lambda: torch.zeros(2, device="cuda"),
    "made of numbers": lambda: torch.tensor([1.0, 2.0], device="cuda"),
    "module.cuda()": lambda: nn.Linear(2, 2).cuda().weight,
    "module.to": lambda: nn.Linear(2, 2).to("cuda").weight,
    "a module made there": lambda: nn.Linear(2, 2, device="cuda").weight,
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_goes_to_cuda_stays(name):
    assert MAKERS[name]().device.type == "cpu"


def test_a_default_device_may_be_cuda():
    with torch.device("cuda"):
        assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_questions_are_answered_for_the_gpu_that_was_named():
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() == 1
    assert torch.cuda.get_device_capability() == (8, 0)
    assert torch.cuda.get_device_properties(0).multi_processor_count == 108
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() == 0


def test_types_are_not_devices():
    assert torch.ones(2).to(torch.bfloat16).dtype is torch.bfloat16
    assert torch.ones(2, device="meta").device.type == "meta"


def test_a_scaler_for_cuda_is_enabled():
    assert torch.amp.GradScaler("cuda").is_enabled()
