"""The `fake` device: any size of model on any machine, by FakeTensors that have shapes and no memory.

The step really runs: the user's Python, autograd and the optimizer. Only kernels do not, so that peaks come from the
recorded lives of storages. Without a GPU named, operators are those that a CPU runs; with one, `rules` puts in what
CUDA would run instead.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.optim import optimizer
from torch.utils import _foreach_utils

from dnnmem.estimator.device import Device
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Origin, Trace
from dnnmem.profilers.capture import Built, capture
from dnnmem.profilers.rules.cuda import cuda_rules
from dnnmem.profilers.rules.workspaces import Workspaces
from dnnmem.profilers.step import Target
from dnnmem.profilers.tensors import map_tensors
from dnnmem.profilers.values import SmallValues
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


class DataDependentError(UnsupportedError):
    """A shape or a branch depends on values that a fake run does not have."""

    def __init__(self, operator: str) -> None:
        """`operator`: the one that needs them."""
        super().__init__(
            f"{operator} depends on values that a fake run does not have",
            hint="use --device cpu with a small batch, or --device cuda",
        )
        self.operator = operator


class _Mode(FakeTensorMode):
    """A mode that stays one when a model is copied, as averages of weights are made."""

    def __deepcopy__(self, memo: object) -> _Mode:
        return self


@contextmanager
def _as_plain_tensors() -> Iterator[None]:
    """Let code that asks for exact types take the path that it takes for plain tensors.

    torch chooses its foreach paths so; transformers takes a FakeTensor for a sign of tracing and then builds masks
    which a plain run leaves out.
    """
    lists = (_foreach_utils._foreach_supported_types, optimizer._foreach_supported_types)
    for types in lists:
        types.append(FakeTensor)
    hugging_face: Any = sys.modules.get("transformers.utils.import_utils")
    asked = getattr(hugging_face, "is_fake_tensor", None)
    if asked is not None:
        hugging_face.is_fake_tensor = lambda _: False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # deepcopy does
            yield
    finally:
        for types in lists:
            types.remove(FakeTensor)
        if asked is not None:
            hugging_face.is_fake_tensor = asked


@contextmanager
def _swapping(fake: FakeTensorMode) -> Iterator[None]:
    """Let `model.bfloat16()` convert parameters: torch swaps FakeTensors, and refuses those that the mode remembers."""
    remembered = fake.fake_tensor_converter.tensor_memo
    swap: Any = torch.utils.swap_tensors

    def forget_and_swap(old: torch.Tensor, new: torch.Tensor) -> None:
        for key in [key for key, known in remembered.items() if known is old or known is new]:
            del remembered[key]
        swap(old, new)

    torch.utils.swap_tensors = forget_and_swap
    try:
        yield
    finally:
        torch.utils.swap_tensors = swap


def profile_fake(
    target: Target, *, steps: int, origin: Origin, on_step: Callable[[int], None], gpu: Device | None = None
) -> tuple[Trace, Measurement]:
    """Trace of the last of `steps` fake steps. Raises `DataDependentError` naming the operator.

    `gpu` describes `origin.gpu` if that is not one of `specs/`.
    """
    batch = target.make_batch()
    if origin.gpu is not None:
        batch = map_tensors(batch, Tensor.clone)  # each goes to the GPU on its own, views too
    fake = _Mode(allow_non_fake_inputs=True)
    values = SmallValues(fake)
    shown = gpu or (find_device(origin.gpu) if origin.gpu is not None else None)
    assumed = cuda_rules(shown, cudnn=os.environ.get(VARIABLE, "")) if shown is not None else nullcontext()
    try:
        with assumed as rules, fake, values, _as_plain_tensors(), _swapping(fake):
            model = target.make_model()
            built = Built(
                model=model, batch=map_tensors(batch, values.adopt), optimizer=target.make_optimizer(model.parameters())
            )
            trace, growth = capture(
                target,
                built,
                device_type="cpu",
                fake=True,
                steps=steps,
                origin=origin,
                inside=rules.inside if rules is not None else None,
                on_step=on_step,
            )
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise DataDependentError(str(error.func)) from error
    except UnsupportedFakeTensorException as error:
        raise UnsupportedError(f"this step cannot run on FakeTensors: {error}", hint="use --device cpu") from error
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
