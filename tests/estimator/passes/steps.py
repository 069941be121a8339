"""Recorded steps for passes: the sample language model on FakeTensors with an H100's kernels, small, once a session."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Origin, Phase, Trace
from dnnmem.profilers.fake import profile_fake
from tests.conftest import ROOT
from tests.profilers.recorded import loss_step, target_of

SIZES = {"width": 64, "heads": 4, "vocab": 320, "context": 32}
LLAMA = {"kv_heads": 2, "norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": False, "tied": False}
WRITTEN = {"attention": "math"}


@cache
def sample(name):
    """A module of `sample_models`."""
    spec = importlib.util.spec_from_file_location(f"sample_{name}", ROOT / "sample_models" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _gpt(arguments) -> Trace:
    gpt = sample("gpt")
    arguments = {**SIZES, **dict(arguments)}
    batch = arguments.pop("batch", 2)
    if "dtype" in arguments:
        arguments["dtype"] = getattr(torch, arguments["dtype"])
    target = target_of(
        lambda: gpt.make_model(**arguments),
        lambda size: gpt.make_batch(size, 32, SIZES["vocab"]),
        loss_step(lambda model, batch: gpt.make_loss(model(batch[0]), batch)),
        gpt.make_optimizer,
        batch_size=batch,
    )
    return profile_fake(target, steps=2, origin=Origin(gpu="h100-sxm-80gb"), on_step=lambda _: None)[0]


def gpt(layers=3, **arguments) -> Trace:
    """The sample GPT on 32 tokens a sample, 2 samples unless `batch` says so; once for each set of arguments."""
    return _gpt(tuple(sorted({"layers": layers, **arguments}.items())))


def reserved(trace) -> int:
    """Bytes that PyTorch's allocator holds for it."""
    return replay_trace(trace).peak_reserved_bytes


def passes_peak(trace) -> int:
    """Most bytes alive in the forward and backward pass, pinned ones left out."""
    live = peak = 0
    for op in trace.ops:
        for event in op.events:
            live += event.nbytes
            if op.phase is not Phase.STEP:
                peak = max(peak, live)
    return peak


def plain(trace):
    """All that a trace says, with ids, those of temporaries too, in the order of their first use."""
    ids: dict[int, int] = {}
    temporaries: dict[int, int] = {}

    def name(i):
        return -1 - temporaries.setdefault(i, len(temporaries)) if i < 0 else ids.setdefault(i, len(ids))

    setup = [(e.nbytes, e.stream, name(e.storage)) for e in trace.setup]
    ops = [
        (op.name, op.module, op.phase, op.lane, [*map(name, op.reads)], [*map(name, op.writes)],
         [(e.nbytes, e.stream, name(e.storage)) for e in op.events], op.flops, op.masked_flops,
         op.workspace_bytes, op.source)
        for op in trace.ops
    ]  # fmt: skip
    storages = {
        name(i): (s.nbytes, s.kind, s.shape, s.dtype, s.module, s.name, s.saved) for i, s in trace.storages.items()
    }
    return setup, ops, storages, {name(i) for i in trace.pinned}, trace.modules
