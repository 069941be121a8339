"""The `fake` device: any size of model on any machine, by FakeTensors that have shapes and no memory.

The step really runs: the user's Python, autograd and the optimizer. Only kernels do not, so that peaks come from the
recorded lives of storages. Without a GPU named, operators are those that a CPU runs; with one, `rules` puts in what
CUDA would run instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from dnnmem.estimator.device import Device
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Origin, Trace
from dnnmem.profilers.capture import Built, capture
from dnnmem.profilers.faking import Faking
from dnnmem.profilers.rules.recurrent_moved import moved
from dnnmem.profilers.rules.workspaces import Workspaces
from dnnmem.profilers.step import Target
from dnnmem.profilers.tensors import map_tensors
from dnnmem.profilers.virtual_facts import Facts, asked_facts, cudnn_notes
from dnnmem.profilers.virtual_gpu.build import find_compiler
from dnnmem.profilers.virtual_gpu.cudnn_query import device_text
from dnnmem.profilers.virtual_gpu.cudnn_service import VARIABLE, find_cudnn
from dnnmem.profilers.virtual_gpu.installed import find_torch

_ON_A_CPU = "operators are those of a CPU: on a GPU, attention and dropout differ; --gpu NAME says which GPU"

_BENCHMARK = (
    "cudnn.benchmark is on: a GPU tries plans for convolutions with their workspaces and takes the fastest; here it is "
    "the first that cuDNN proposes, and none is tried"
)


def profile_fake(
    target: Target, *, steps: int, origin: Origin, on_step: Callable[[int], None], gpu: Device | None = None
) -> tuple[Trace, Measurement]:
    """Trace of the last of `steps` fake steps. Raises `DataDependentError` naming the operator, and for torch.compile.

    `gpu` describes `origin.gpu` if that is not one of `specs/`.
    """
    batch = target.make_batch()
    if origin.gpu is not None:
        batch = map_tensors(batch, Tensor.clone)  # each goes to the GPU on its own, views too
    shown = gpu or (find_device(origin.gpu) if origin.gpu is not None else None)
    faking = Faking(shown, cudnn=os.environ.get(VARIABLE, ""))
    values = faking.values
    with faking.active():
        rules = faking.rules
        model = target.make_model()
        _refuse_compiled(model)
        built = Built(
            model=model, batch=map_tensors(batch, values.adopt), optimizer=target.make_optimizer(model.parameters())
        )
        trace, growth = capture(
            target,
            built,
            device_type="cpu",
            fake=faking.mode,
            steps=steps,
            origin=origin,
            inside=rules.inside if rules is not None else None,
            moved=moved if rules is not None else lambda *_: None,
            on_step=on_step,
        )
    notes = tuple(f"{text} ({count} times)" for text, count in sorted(values.assumptions.items()))
    facts: Facts = {}
    if shown is None or rules is None:
        notes = (
            *notes,
            "operators are those of a CPU: on a GPU, attention and dropout differ; --gpu NAME says which GPU",
        )
    else:
        facts, unsure = _workspaces(rules.workspaces, shown)
        notes = (*notes, rules.note(), *unsure)
    trace = replace(trace, origin=replace(trace.origin, notes=(*trace.origin.notes, *notes)))
    return trace, Measurement(growth_bytes=growth, facts=facts)


def _refuse_compiled(model: nn.Module) -> None:
    """Raise `UnsupportedError` for torch.compile: compiled graphs under a fake mode of another's crash the process."""
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise UnsupportedError(
                f"{name or 'the model'} is compiled (torch.compile), which the fake device cannot run",
                hint="use --device virtual or cuda, or leave torch.compile out here",
            )


def _workspaces(workspaces: Workspaces, gpu: Device) -> tuple[Facts, list[str]]:
    """Which cuDNN told the workspaces of convolutions, and what is not certain of them."""
    if not workspaces.calls:
        return {}, []
    if workspaces.address:
        facts = asked_facts(workspaces.unknown, workspaces.address)
        return facts, [*cudnn_notes(facts), *([_BENCHMARK] if torch.backends.cudnn.benchmark else [])]
    why = "the process that knows them was not started, or died"
    try:
        find_cudnn(find_torch())
        device_text(gpu)
        find_compiler()
    except UnsupportedError as error:
        why = error.message
    return {}, [f"cuDNN's workspaces are counted as 0, so convolutions may need more than is said: {why}"]
