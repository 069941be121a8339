"""`dnnmem.profile`: where every byte and second of one training step goes, from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnmem.cli.api.shown import ShownProfile, shown
from dnnmem.cli.cache import cache_folder
from dnnmem.cli.commands.deliver import make_profile
from dnnmem.cli.commands.job import prepare
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.trace_file import load_trace

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer


def profile(
    target: str | os.PathLike[str] | nn.Module,
    batch: Any = None,  # noqa: ANN401 - a number of samples, or a batch of any kind
    *,
    seq: int | None = None,
    args: Mapping[str, object] | None = None,
    inputs: Sequence[str] = (),
    optimizer: str | Optimizer | None = None,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    device: str | None = None,
    gpu: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    repeats: int | None = None,
    timeout: float | None = None,
) -> ShownProfile:
    """What one training step of `target` needs.

    Args: `target` as on the command line (`model.py`, `hf:gpt2`, `step.trace.json.gz`), with `batch` samples; the
    others are the options of `dnnmem profile`, settings files and environment included. It runs in its own process.

    Or `target` is a module and `batch` what it is called with; `optimizer` may be one over its parameters, `loss` is
    called as `loss(output, batch)`. Then a copy of both makes the steps in this process: on `cpu`, or on `fake`, which
    a `gpu` means. Raises a `DnnmemError`.
    """
    if isinstance(target, (str, os.PathLike)):
        typed = {
            "batch": batch, "seq": seq, "optimizer": optimizer, "device": device, "gpu": gpu, "steps": steps,
            "seed": seed, "repeats": repeats, "timeout": timeout,
        }  # fmt: skip
        if loss is not None:
            raise UsageError("loss goes with a module; a target has a make_loss of its own")
        return _of_target(os.fspath(target), typed, args or {}, inputs)
    given = {"seq": seq, "args": args, "inputs": inputs, "seed": seed, "timeout": timeout}
    vain = [name for name, value in given.items() if value]
    if vain or batch is None:
        what = f"takes no {', '.join(vain)}" if vain else "needs a batch"
        raise UsageError(f"a module {what}", hint="dnnmem.profile(model, batch, optimizer=..., loss=...)")
    from dnnmem.profilers.live import Live, profile_live

    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler speaks on stderr
    shown_gpu = find_device(gpu) if gpu is not None else None
    live = Live(model=target, batch=batch, optimizer=optimizer or "adamw", loss=loss)
    chosen = device or ("fake" if gpu is not None else "cpu")
    trace, measurement = profile_live(live, device=chosen, gpu=shown_gpu, steps=steps, repeats=repeats or 5)
    return shown(ShownProfile, make_profile(trace, measurement, shown_gpu), trace=trace)


def _of_target(
    target: str, typed: Mapping[str, Any], args: Mapping[str, object], inputs: Sequence[str]
) -> ShownProfile:
    words = [f"{name}={value}" for name, value in args.items()]
    job = prepare(target, typed, os.environ, folder=Path.cwd(), inputs=inputs, args=words)
    if job.request is None:
        trace, measurement = load_trace(job.target)
    else:
        from dnnmem.profilers.run import run

        trace, measurement = run(
            job.request, timeout=job.timeout_seconds, gpu=job.device, cache=cache_folder(os.environ)
        )
    return shown(ShownProfile, make_profile(trace, measurement, job.device), trace=trace)
