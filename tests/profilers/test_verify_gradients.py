"""The gradient error of a plan is measured where it loses something, and only there."""

from __future__ import annotations

import os

import pytest

from dnnmem.estimator.plan import Compression, Plan
from dnnmem.profilers.request import Request
from dnnmem.profilers.verify_gradients import is_lossy, measured_error

SMALL = {"layers": "2", "width": "64", "heads": "2", "vocab": "500", "context": "256"}


def test_masks_lose_nothing():
    assert not is_lossy(Plan(compression=Compression(masks=True)))
    assert is_lossy(Plan(compression=Compression(bits=8)))
    assert is_lossy(Plan(compression=Compression(projection=0.5)))


def test_a_child_measures(root):
    # GIVEN a model whose activations of two samples are large enough to be encoded
    asked = Request(target=str(root / "sample_models" / "gpt.py"), args=SMALL, batch_size=64, seq_len=256)
    found = measured_error(asked, Plan(compression=Compression(bits=8)), os.environ)
    # THEN eight bits lose something, and little
    assert found is not None
    assert 0 < found < 0.05


@pytest.mark.parametrize("seconds", [0.01])
def test_what_takes_too_long_is_not_known(root, seconds):
    asked = Request(target=str(root / "sample_models" / "gpt.py"), args=SMALL, batch_size=64, seq_len=256)
    assert measured_error(asked, Plan(compression=Compression(bits=8)), os.environ, seconds) is None
