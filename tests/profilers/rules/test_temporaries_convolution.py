"""A fake run for a GPU makes the copies and workspaces of convolutions where torch makes them on the GPU.

The orders were read off torch's allocator on a virtual H100 (2.14.1).
"""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Origin
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.rules import workspaces
from dnnmem.profilers.virtual_gpu.cudnn_service import VARIABLE
from tests.profilers.recorded import loss_step, ops_named, target_of

BYTES = {10: 1_000_000, 11: 11_000_000, 12: 12_000_000}
"""Workspaces of output, gradient of weight and gradient of input."""
X, W, Y = 4 * 64 * 56 * 56 * 4, 128 * 64 * 9 * 4, 4 * 128 * 56 * 56 * 4
FORWARD, BACKWARD = "aten.convolution.default", "aten.convolution_backward.default"


def images(batch_size):
    return torch.randn(batch_size, 64, 56, 56)


def total(model, batch):
    return model(batch).pow(2).sum()


def model(**options):
    return nn.Sequential(nn.Identity(), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 128, 3, padding=1, bias=False, **options))


def recorded(make_model=model, loss=total, gpu="h100-sxm-80gb"):
    target = target_of(make_model, images, loss_step(loss))
    return profile_fake(target, steps=2, origin=Origin(gpu=gpu), on_step=lambda _: None)[0]


def made(trace, name):
    """Signed bytes of what the last such convolution of the forward pass allocates and frees of its own."""
    op = ops_named(trace, name)[-1 if name == FORWARD else 0]
    own = {e.storage for e in op.events if e.nbytes > 0}
    return [e.nbytes for e in op.events if e.storage in own]


@pytest.fixture
def answers(monkeypatch):
    """A cuDNN that offers an engine without a plan, one that tensor cores would run, and one that anybody takes."""
    asked = []

    def talk(address, line, *, wait_seconds):
        assert (address, wait_seconds > 5) == ("@somebody", True)
        question = json.loads(line)
        asked.append(question)
        kind = question["graph"][4][0]
        return json.dumps([[1, -1, 0, 0], [2, BYTES[kind], 1, 0], [3, 77, 0, 0]])

    monkeypatch.setenv(VARIABLE, "@somebody")
    monkeypatch.setattr(workspaces, "talk", talk)
    monkeypatch.setattr("dnnmem.profilers.fake.asked_facts", lambda *_: {})
    return asked


def test_each_call_has_its_workspace(answers):
    trace = recorded()
    assert made(trace, FORWARD) == [Y, BYTES[10], -BYTES[10]]
    assert made(trace, BACKWARD) == [X, BYTES[12], -BYTES[12], W, BYTES[11], -BYTES[11]]
    # THEN each was asked for once in all steps
    assert len(answers) == len({json.dumps(question) for question in answers})


@pytest.mark.usefixtures("answers")
def test_the_allocator_reserves_them(monkeypatch):
    with_them = replay_trace(recorded()).peak_reserved_bytes
    monkeypatch.delenv(VARIABLE)
    assert with_them > replay_trace(recorded()).peak_reserved_bytes


@pytest.mark.usefixtures("answers")
def test_without_tensor_cores_it_is_another_engine(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert made(recorded(), FORWARD) == [Y, 77, -77]


@pytest.mark.usefixtures("answers")
def test_what_lies_otherwise_is_copied_for_one_call():
    # GIVEN the gradient of a sum, one number that is expanded: each of the two calls copies it, as torch does
    trace = recorded(loss=lambda model, batch: model(batch).sum())
    copied = [X, Y, BYTES[12], -BYTES[12], -Y, Y, W, BYTES[11], -BYTES[11], -Y]
    assert made(trace, BACKWARD) == copied


def test_channels_last_copies_the_weight(answers):
    def last(net, batch):
        return total(net, batch.contiguous(memory_format=torch.channels_last))

    trace = recorded(loss=last)
    assert made(trace, BACKWARD) == [X, W, BYTES[12], -BYTES[12], -W, W, BYTES[11], -BYTES[11]]
    tensors = [part[1] for part in answers[-1]["graph"][:3]]
    assert [tensor[2][2][1] for tensor in tensors] == [1, 1, 1]


def test_torchs_own_kernels_ask_nobody(answers):
    filters = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
    trace = recorded(lambda: nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), filters))
    assert made(trace, FORWARD) == [X]
    # THEN the gradient of the weight is made first, as torch does there
    assert made(trace, BACKWARD) == [64 * 9 * 4, X]
    assert [64, 1, 3, 3] not in [question["graph"][1][1][1][2] for question in answers]


@pytest.mark.parametrize("silent", [None, "{}", '{"error": "cuDNN refuses"}'])
@pytest.mark.usefixtures("answers")
def test_without_an_answer_there_is_none(monkeypatch, silent):
    monkeypatch.setattr(workspaces, "talk", lambda *_, **__: silent)
    assert made(recorded(), FORWARD) == [Y]


def test_a_run_that_nobody_answers_says_so(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    notes = recorded().origin.notes
    assert [note for note in notes if "counted as 0, so convolutions may need more" in note]
    # THEN a step without convolutions has nothing to say of it
    plain = recorded(lambda: nn.Linear(56, 56)).origin.notes
    assert not [note for note in plain if "workspaces" in note]
