"""Results of `dnnmem.profile` and the others are the estimator's types, and show themselves everywhere."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import dnnmem
from dnnmem.cli.api.shown import Shown, ShownProfile
from dnnmem.estimator.diff import Difference
from dnnmem.estimator.errors import ModelError, UnsupportedError, UsageError

HOSTILE = "<script>alert(1)</script>"


class Odd(nn.Module):
    """A module whose child has a name that a page must not run."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(HOSTILE, nn.Linear(64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._modules[HOSTILE](x).sum()  # type: ignore[misc]


@pytest.fixture(scope="module")
def profiled() -> ShownProfile:
    return dnnmem.profile(Odd(), torch.ones(8, 64), device="fake")


def _shown(value: Shown) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor")
    console.print(value)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_profile_is_one_and_shows_itself(profiled: ShownProfile) -> None:
    # GIVEN a profile  THEN it is the estimator's, in a line, as a report, in colour and as a page
    assert isinstance(profiled, dnnmem.Profile)
    assert repr(profiled).startswith("<Profile: Odd on fake, ")
    assert "parameters" in str(profiled)
    assert "\x1b[" in _shown(profiled)
    assert "\x1b[" not in str(profiled)
    again = pickle.loads(pickle.dumps(profiled))  # noqa: S301 - written here
    assert again.total_bytes == profiled.total_bytes


def test_a_page_in_a_notebook_is_shut_in_and_runs_no_name(profiled: ShownProfile) -> None:
    frame = profiled._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert "<script" not in frame
    assert '"' not in frame.partition('srcdoc="')[2].partition('" sandbox="allow-scripts"')[0]
    assert HOSTILE not in profiled._page()


def test_differences_know_since_when(profiled: ShownProfile) -> None:
    wide = dnnmem.profile(Odd(), torch.ones(64, 64), device="fake")
    found = dnnmem.diff(profiled, wide)
    assert isinstance(found, Difference)
    assert found.grown_bytes == wide.total_bytes - profiled.total_bytes > 0
    assert "needs" in str(found)
    assert found._repr_html_().startswith("<iframe")


def test_the_model_stays_as_it_is() -> None:
    # GIVEN a trained model with a tied weight, its optimizer and the state of the random numbers
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 16))
    model[3].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(4, 16)).sum().backward()
    optimizer.step()
    before = [t.clone() for t in (*model.state_dict().values(), *(p.grad for p in model.parameters()))]
    state = torch.get_rng_state()
    # WHEN it is profiled in both ways
    found = [
        dnnmem.profile(model, torch.ones(4, 16), optimizer=optimizer, loss=lambda y, _: y.sum(), device=device)
        for device in ("cpu", "fake")
    ]
    # THEN nothing of it has changed, and both saw its weights once, with their momentum
    after = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    weights = (16 * 16 + 4 * 16) * 4
    assert [(p.parts["param"], p.parts["optimizer"]) for p in found] == [(weights, weights)] * 2


def test_what_else_the_program_holds_does_not_count() -> None:
    alone = dnnmem.profile(Odd(), torch.ones(8, 64), device="cpu", repeats=1)
    held = torch.ones(1 << 20)
    assert (
        dnnmem.profile(Odd(), torch.ones(8, 64), device="cpu", repeats=1).total_bytes == alone.total_bytes < len(held)
    )


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: dnnmem.profile(Odd()), UsageError, "a module needs a batch"),
        (lambda: dnnmem.profile(Odd(), torch.ones(8, 64), seq=4), UsageError, "a module takes no seq"),
        (lambda: dnnmem.profile(Odd(), torch.ones(8, 64), device="cuda"), UnsupportedError, "cannot be profiled on"),
        (lambda: dnnmem.profile(Odd(), torch.ones(8, 3)), ModelError, "the training step failed: RuntimeError"),
        (lambda: dnnmem.profile(Odd(), torch.ones(8, 64), gpu="h999"), UsageError, "h999"),
        (lambda: dnnmem.profile("model.py", 8, loss=len), UsageError, "loss goes with a module"),
        (lambda: dnnmem.diff("nowhere.json", "nowhere.json"), UsageError, "nowhere.json"),
        (lambda: dnnmem.estimate("model.py", {"nonsense": 1}, cluster="h100:1"), UsageError, "nonsense"),
    ],
)
def test_what_cannot_be_is_one_error(call: Any, kind: type[dnnmem.DnnmemError], said: str) -> None:
    with pytest.raises(kind) as found:
        call()
    assert said in found.value.message


def test_every_public_name_can_be_had() -> None:
    assert all(getattr(dnnmem, name) for name in dnnmem.__all__)
    assert {"profile", "estimate", "recommend", "apply", "check", "diff"} <= set(dir(dnnmem))


def test_a_check_is_a_verdict_that_raises_nothing(root: Path, tmp_path: Path) -> None:
    # GIVEN a step that is accepted  WHEN it is checked against a budget that it breaks
    target, file = str(root / "sample_models" / "mlp.py"), tmp_path / "baseline.json"
    assert not dnnmem.check(target, batch=8, baseline=file, update=True).fails
    small = dnnmem.check(target, batch=8, baseline=file, budget="1 MiB")
    # THEN it fails, compared with what was accepted
    assert small.fails
    assert small.verdict.increase == 0
    assert "&lt;pre&gt;" in small._repr_html_()
