"""CUDA's words in a user's program: `.cuda()`, `.to("cuda")`, `device="cuda"` and questions about the GPU.

In a fake run there is one device, and its tensors already are what would be on the GPU: a word that moves them there
moves nothing. Questions (`torch.cuda.is_available()`) are answered as on the GPU that was named, unless torch itself
asks: it would then go and call the driver.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch.overrides import TorchFunctionMode

from dnnmem.estimator.device import Device
from dnnmem.profilers.rules.gpu import compute_capability
from dnnmem.profilers.virtual_gpu.identity import cuda_name

_CPU = torch.device("cpu")
_NOTHING = (
    "synchronize", "empty_cache", "ipc_collect", "reset_peak_memory_stats", "reset_max_memory_allocated", "init",
    "reset_accumulated_memory_stats", "manual_seed", "manual_seed_all", "seed", "seed_all", "set_device",
    "set_rng_state", "set_rng_state_all",
)  # fmt: skip
_ZERO = (
    "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "current_device",
    "initial_seed",
)  # fmt: skip


class _OneDevice(TorchFunctionMode):
    """Takes `cuda` for the one device there is, wherever a function of torch is told a device."""

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.cuda:
            return args[0]
        if kwargs and "device" in kwargs:
            kwargs = {**kwargs, "device": here(kwargs["device"])}
        if len(args) > 1 and any(type(a) in _WORDS for a in args):
            is_to = func is Tensor.to
            args = tuple(here(a) if not is_to or i == 1 else a for i, a in enumerate(args))
        return func(*args, **(kwargs or {}))


def here(device: Any) -> Any:
    """The device to use where the program says `device`; what is not CUDA's stays.

    >>> here("cuda:1"), here("float32"), here(torch.device("meta"))
    (device(type='cpu'), 'float32', device(type='meta'))
    """
    if isinstance(device, torch.device):
        return _CPU if device.type == "cuda" else device
    if isinstance(device, str):
        return _CPU if device.partition(":")[0] == "cuda" else device
    return device


_WORDS = frozenset({str, torch.device})


@contextmanager
def cuda_words(device: Device) -> Iterator[None]:
    """Let programs name CUDA until the context ends; questions are answered for `device`."""
    with ExitStack() as stack:
        for patcher in _patches(device):
            stack.enter_context(patcher)
        stack.enter_context(_OneDevice())
        yield


def _patches(device: Device) -> Iterator[Any]:
    major, minor = compute_capability(device)
    answers: dict[str, Callable[..., Any]] = {
        **{name: (lambda *_, **__: None) for name in _NOTHING},
        **{name: (lambda *_, **__: 0) for name in _ZERO},
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "is_bf16_supported": lambda *_, **__: True,
        "get_device_name": lambda *_: cuda_name(device),
        "get_device_capability": lambda *_: (major, minor),
        "get_device_properties": lambda *_: SimpleNamespace(
            name=cuda_name(device),
            major=major,
            minor=minor,
            total_memory=device.usable_bytes,
            multi_processor_count=device.sm_count,
        ),
        "mem_get_info": lambda *_: (device.usable_bytes, device.usable_bytes),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda *_: [torch.zeros(16, dtype=torch.uint8)],
    }
    for name, answer in answers.items():
        yield patch.object(torch.cuda, name, _unless_torch_asks(getattr(torch.cuda, name), answer))
    yield patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    if hasattr(fake_tensor, "init_gpu_context"):
        yield patch.object(fake_tensor, "init_gpu_context", lambda *_: None)


def _unless_torch_asks(own: Callable[..., Any], answer: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        asker = str(sys._getframe(1).f_globals.get("__name__", ""))
        return (own if asker.partition(".")[0] == "torch" else answer)(*args, **kwargs)

    return run
