"""A context in which tensors are FakeTensors: shapes and no memory, under CUDA's rules where a GPU is named.

FakeTensors belong to one mode, so a `Faking` holds it, and is entered as often as there is something to run.

>>> import torch
>>> with Faking(None).active():
...     torch.nn.Linear(1 << 15, 1 << 15).weight.shape
torch.Size([32768, 32768])
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
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
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.rules.cuda import Rules, cuda_rules
from dnnmem.profilers.rules.dispatch import kernels
from dnnmem.profilers.rules.packed_sequences import PACKED
from dnnmem.profilers.values import SmallValues


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


@contextmanager
def _lengths_as_tensors() -> Iterator[None]:
    """Let the CTC loss take lengths that are plain numbers: torch writes them into a tensor that has no data here."""
    loss: Any = torch.ctc_loss

    def with_tensors(log_probs: Any, targets: Any, *lengths: Any, **named: Any) -> Any:
        found = [torch.tensor(x) if isinstance(x, (tuple, list)) else x for x in lengths[:2]]
        return loss(log_probs, targets, *found, *lengths[2:], **named)

    torch.ctc_loss = with_tensors
    try:
        yield
    finally:
        torch.ctc_loss = loss


class Faking:
    """One fake run: its mode, its small values, and the rules that hold."""

    def __init__(self, gpu: Device | None, *, cudnn: str = "") -> None:
        """`gpu`: whose kernels are assumed, None for a CPU's; `cudnn`: address of who knows cuDNN's workspaces."""
        self.mode: FakeTensorMode = _Mode(allow_non_fake_inputs=True)
        self.values = SmallValues(self.mode)
        self.rules: Rules | None = None
        """Those in force, or last in force."""
        self._gpu = gpu
        self._cudnn = cudnn

    @contextmanager
    def active(self) -> Iterator[None]:
        """Tensors are fake until the context ends. Raises `DataDependentError` naming the operator."""
        assumed = cuda_rules(self._gpu, cudnn=self._cudnn) if self._gpu is not None else nullcontext()
        try:
            with (
                assumed as rules,
                self.mode,
                self.values,
                _as_plain_tensors(),
                _swapping(self.mode),
                _lengths_as_tensors(),
                kernels(PACKED),
            ):
                self.rules = rules
                yield
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise DataDependentError(str(error.func)) from error
        except UnsupportedFakeTensorException as error:
            raise UnsupportedError(f"this step cannot run on FakeTensors: {error}", hint="use --device cpu") from error
