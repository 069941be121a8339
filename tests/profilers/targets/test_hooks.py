"""Hooks and symbols of the user's own code: what is called, with what, and in which context."""

from __future__ import annotations

import sys

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import resolve


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write model.py and move beside it; the import path is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(code, name="model.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("import torch\nfrom torch import nn\n" + code)
        return name

    return write


def test_the_users_own_step_is_called_itself(write):
    write(
        "def make_model():\n    return nn.Linear(2, 1)\n"
        "def make_batch(batch_size):\n    return iter([1])\n"
        "def make_optimizer(parameters):\n    return {'params': list(parameters)}\n"
        "def train_step(model, batch, optimizer):\n    return next(batch), len(optimizer['params'])\n"
    )
    target = resolve(Request(target="model.py", batch_size=1))
    model = target.make_model()
    assert target.train_step.__name__ == "train_step"
    assert target.train_step(model, target.make_batch(), target.make_optimizer(model.parameters())) == (1, 2)


def test_sizes_come_from_the_request_and_else_from_the_defaults(write):
    write(
        "def make_model(seq_len=3):\n    return nn.Linear(seq_len, 1)\n"
        "def make_batch(batch_size=4, seq_len=5):\n    return torch.ones(batch_size, seq_len)\n"
    )
    by_default = resolve(Request(target="model.py"))
    assert dict(by_default.batch) == {"batch_size": 4, "seq_len": 5}
    assert by_default.make_model().in_features == 3
    asked = resolve(Request(target="model.py", batch_size=2, seq_len=7))
    assert asked.make_batch().shape == (2, 7)
    assert asked.make_model().in_features == 7
    again = asked.rescale(1, 9)
    assert (again.make_batch().shape, again.make_model().in_features) == ((1, 9), 9)
    assert asked.rescale(1, None).make_batch().shape == (1, 7)


def test_a_nanogpt_like_model_returns_its_loss_in_a_tuple(write):
    write(
        "class GPT(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.head = nn.Embedding(11, 11)\n"
        "    def forward(self, idx, targets=None):\n        logits = self.head(idx)\n"
        "        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())\n"
        "        return logits, loss\n"
        "def make_batch(batch_size, seq_len):\n"
        "    return torch.randint(11, (batch_size, seq_len)), torch.randint(11, (batch_size, seq_len))\n"
    )
    target = resolve(Request(target="model.py:GPT", batch_size=2, seq_len=4, optimizer="sgd:lr=1"))
    model = target.make_model()
    before = model.head.weight.detach().clone()
    target.train_step(model, target.make_batch(), target.make_optimizer(model.parameters()))
    assert not torch.equal(before, model.head.weight)


def test_inputs_stand_in_for_make_batch_and_scale(write):
    write("class Net(nn.Linear):\n    def forward(self, x):\n        return super().forward(x).sum()\n")
    args = {"in_features": "4", "out_features": "3"}
    target = resolve(Request(target="model.py:Net", inputs=("8,4:fp32",), args=args))
    assert target.batch["batch_size"] == 8
    assert target.make_batch()[0].shape == (8, 4)
    model = target.make_model()
    target.train_step(model, target.make_batch(), target.make_optimizer(model.parameters()))
    scaled = target.rescale(3, None)
    assert scaled.make_batch()[0].shape == (3, 4)
    assert scaled.rescale(5, None).make_batch()[0].shape == (5, 4)


def test_a_model_without_a_loss_is_told_how_to_give_one(write):
    write("net = nn.Linear(4, 3)\n")
    target = resolve(Request(target="model.py:net", inputs=("8,4",)))
    model = target.make_model()
    with pytest.raises(UsageError, match=r"a tensor of shape \(8, 3\), which holds no single loss") as caught:
        target.train_step(model, target.make_batch(), target.make_optimizer(model.parameters()))
    assert "def make_loss" in caught.value.hint


def test_a_model_instance_is_built_anew_in_the_context_of_the_device(write):
    # GIVEN a file that builds its model when it is imported
    write("class parts:\n    net = nn.Linear(4, 3)\n")
    target = resolve(Request(target="model.py:parts.net", inputs=("8,4",)))
    # WHEN it is asked for twice, the second time on fake tensors
    first = target.make_model()
    with FakeTensorMode():
        fake = target.make_model()
    # THEN each is its own model, and the second is fake throughout
    assert fake is not first
    assert all(isinstance(p.data, FakeTensor) or isinstance(p, FakeTensor) for p in fake.parameters())
    assert not any(isinstance(p, FakeTensor) for p in first.parameters())


def test_a_module_of_a_package_is_found_from_the_current_folder(write, tmp_path):
    write("from their_nets.parts import Part\nclass Net(Part):\n    pass\n", "their_nets/deep/net.py")
    write("class Part(nn.Linear):\n    def __init__(self):\n        super().__init__(4, 1)\n", "their_nets/parts.py")
    for folder in ("their_nets", "their_nets/deep"):
        write("", f"{folder}/__init__.py")
    target = resolve(Request(target="their_nets.deep.net:Net", inputs=("B,4",), batch_size=2))
    assert target.make_model().in_features == 4
    assert target.user_files == (str(tmp_path / "their_nets"),)


def test_code_beside_the_file_is_importable_and_the_file_is_not_main(write):
    write("WIDTH = 6\n", "sizes_beside.py")
    write(
        "from sizes_beside import WIDTH\nassert __name__ != '__main__'\n"
        "def make_model():\n    return nn.Linear(WIDTH, 1)\ndef make_batch(batch_size):\n    pass\n"
    )
    assert resolve(Request(target="model.py", batch_size=1)).make_model().in_features == 6


def test_two_files_of_one_name_do_not_meet(write):
    code = "def make_model():\n    return nn.Linear({0}, 1)\ndef make_batch(batch_size):\n    pass\n"
    for width, folder in ((2, "a"), (3, "b")):
        write(code.format(width), f"{folder}/model.py")
    targets = [resolve(Request(target=f"{folder}/model.py", batch_size=1)) for folder in "ab"]
    assert [t.make_model().in_features for t in targets] == [2, 3]


def test_what_fake_tensors_cannot_trace_is_left_to_the_device(write):
    write(
        "def make_model():\n    return nn.Linear(int(torch.ones(1).item()), 1)\n"
        "def make_batch(batch_size):\n    return torch.ones(batch_size, 1)\n"
    )
    target = resolve(Request(target="model.py", batch_size=1))
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        target.make_model()
