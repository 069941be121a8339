"""Profiles made by hand: a report is tested without running a profiler.

Reports are compared with the texts in tests/golden. To rewrite these after a change that is meant, run

    DNNMEM_REWRITE_GOLDEN=1 pytest tests/cli

and read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dnnmem.estimator.profile import PARTS, Alive, Layer, Peak, Profile
from dnnmem.estimator.timeline import Timeline
from dnnmem.estimator.trace import Kind

MIB = 2**20
BLOCKS = 12


def _block(i):
    peak = 30 * MIB if i < BLOCKS - 1 else 42 * MIB  # the last block's temporaries are alive at the peak
    yield Layer(module=f"h.{i}.ln_1", type="LayerNorm", param_bytes=6144, grad_bytes=6144, optimizer_bytes=12288,
                activation_bytes=24 * MIB, peak_bytes=24 * MIB + 24576)  # fmt: skip
    yield Layer(module=f"h.{i}.attn", type="Attention", activation_bytes=24 * MIB, temp_bytes=12 * MIB,
                peak_bytes=24 * MIB, forward_flops=24 * 10**9, backward_flops=60 * 10**9)  # fmt: skip
    yield Layer(module=f"h.{i}.attn.c_attn", type="Conv1D", param_bytes=7 * MIB, grad_bytes=7 * MIB,
                optimizer_bytes=14 * MIB, activation_bytes=72 * MIB, peak_bytes=98 * MIB + peak,
                forward_flops=29 * 10**9, backward_flops=58 * 10**9)  # fmt: skip


def gpt_layers():
    yield Layer(module="", type="GPT", activation_bytes=24 * MIB, peak_bytes=24 * MIB)
    yield Layer(module="wte", type="Embedding", param_bytes=147 * MIB, grad_bytes=147 * MIB,
                optimizer_bytes=294 * MIB, peak_bytes=588 * MIB)  # fmt: skip
    for i in range(BLOCKS):
        yield from _block(i)
    yield Layer(module="lm_head", type="Linear", activation_bytes=1500 * MIB, peak_bytes=1500 * MIB,
                forward_flops=632 * 10**9, backward_flops=1264 * 10**9)  # fmt: skip
    yield Layer(module="<loss>", type="", temp_bytes=1500 * MIB, peak_bytes=1500 * MIB)


def wave():
    """60 events: activations rise and fall, gradients grow in backward, the optimizer has one temporary."""
    n = 60
    kinds = {kind: np.zeros(n, np.int64) for kind in Kind}
    kinds[Kind.PARAM][:] = 231 * MIB
    kinds[Kind.OPTIMIZER][:] = 462 * MIB
    kinds[Kind.INPUT][:] = MIB
    kinds[Kind.ACTIVATION][:30] = np.linspace(0, 2988, 30).astype(np.int64) * MIB
    kinds[Kind.ACTIVATION][30:50] = np.linspace(2988, 0, 20).astype(np.int64) * MIB
    kinds[Kind.GRAD][30:50] = np.linspace(0, 231, 20).astype(np.int64) * MIB
    kinds[Kind.GRAD][50:] = 231 * MIB
    kinds[Kind.TEMP][30] = 1500 * MIB
    kinds[Kind.TEMP][55] = 300 * MIB
    allocated = sum(kinds.values())
    return Timeline(
        op=np.arange(-1, n - 1, dtype=np.int32), kinds=kinds, allocated=allocated, peak=int(allocated.argmax())
    )


def gpt_profile(**changes):
    """A GPT-like profile on an assumed GPU; its parts sum to its total."""
    parts = dict.fromkeys(PARTS, 0)
    curve = wave()
    parts.update({kind.value: int(line[curve.peak]) for kind, line in curve.kinds.items()})
    parts.update(workspace=32 * MIB, fragmentation=100 * MIB, context=500 * MIB)
    parts.update(changes.pop("parts", {}))
    total = sum(nbytes for nbytes in parts.values() if nbytes is not None)
    allocated = total - sum(parts[name] or 0 for name in ("fragmentation", "context"))
    known = {
        "target": "hf:gpt2",
        "device": "fake",
        "gpu": "l4-24gb",
        "versions": {"dnnmem": "0.1.0", "torch": "2.14.1", "python": "3.11.7"},
        "batch": {"batch_size": 8, "seq_len": 1024},
        "peak": Peak(
            allocated_bytes=allocated,
            reserved_bytes=None if parts["fragmentation"] is None else allocated + parts["fragmentation"],
            phase="backward",
            module="<loss>",
            op="aten._log_softmax_backward_data.default",
            source="train.py:42",
        ),
        "parts": parts,
        "total_bytes": total,
        "usable_bytes": 22 * 2**30,
        "fits": total <= 22 * 2**30,
        "step_seconds": None,
        "layers": tuple(gpt_layers()),
        "alive": (
            Alive(
                nbytes=1500 * MIB, count=1, kind="temp", module="<loss>", source="train.py:42", dtype="float32",
                name="aten._log_softmax_backward_data.default", shape=(8192, 50257),
            ),
            Alive(
                nbytes=864 * MIB, count=12, kind="activation", module="h.0-11.attn.c_attn", source="model.py:31",
                name="aten.addmm.default", shape=(8192, 2304), dtype="float32",
            ),
            Alive(
                nbytes=147 * MIB, count=1, kind="param", module="wte", name="weight", dtype="float32",
                shape=(50257, 768),
            ),
        ),
        "timeline": curve,
        "phases": (("forward", 0), ("backward", 30), ("step", 50)),
        "notes": ("The kernels of an l4-24gb were assumed; none ran.",),
    }  # fmt: skip
    return Profile(**{**known, **changes})


@pytest.fixture(name="gpt")
def _gpt():
    return gpt_profile()


@pytest.fixture(name="make_gpt", scope="session")
def _make_gpt():
    return gpt_profile


@pytest.fixture(name="golden")
def _golden():
    """Compares a text with the one of that name in tests/golden."""

    def check(name, text):
        path = Path(__file__).parents[1] / "golden" / name
        if os.environ.get("DNNMEM_REWRITE_GOLDEN") == "1":
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    """Every test starts in an empty folder, without settings, and with a pipe's width."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DNNMEM_") and name != "DNNMEM_REWRITE_GOLDEN"]:
        monkeypatch.delenv(name)
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
