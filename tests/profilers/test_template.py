"""What `dnnmem init` writes works as it is, and with every comment taken away."""

from __future__ import annotations

import re

import torch

from dnnmem.profilers.request import Request
from dnnmem.profilers.target import resolve
from dnnmem.profilers.template import TEMPLATE


def trained(path, **args):
    target = resolve(Request(target=str(path), batch_size=4, args=args))
    model = target.make_model()
    optimizer = target.make_optimizer(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    target.train_step(model, target.make_batch(), optimizer)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return model, optimizer


def test_the_template_trains_as_it_is(tmp_path):
    (tmp_path / "model.py").write_text(TEMPLATE)
    model, optimizer = trained(tmp_path / "model.py", width="32", classes="5")
    assert model[3].weight.shape == (5, 32)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_its_optional_hooks_work_when_uncommented(tmp_path):
    code = re.sub(r"^# ?(?=def |    |\n)", "", TEMPLATE, flags=re.MULTILINE)
    assert "\ndef train_step" in code
    (tmp_path / "model.py").write_text(code)
    _, optimizer = trained(tmp_path / "model.py")
    assert isinstance(optimizer, torch.optim.SGD)
