"""Kernels put into torch's dispatcher for a while, where CUDA's choice differs from the CPU's.

A FakeTensor of the CPU is dispatched like a CPU tensor: autocast first, then autograd or composite operators, and at
last the modes that record it. Whatever CUDA decides on the way is decided here by a Python kernel in the same place,
whoever calls the operator, C++ included.

>>> import torch
>>> twice = torch.ops.aten.abs.default
>>> with kernels({("aten::relu", "AutogradCPU"): lambda x: twice(x)}):
...     inside = torch.relu(torch.tensor([-3.0]))
>>> inside.item(), torch.relu(torch.tensor([-3.0])).item()
(3.0, 0.0)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

FALL_THROUGH = torch.library.fallthrough_kernel
"""As a kernel: nothing happens under this key."""

Kernels = Mapping[tuple[str, str], Callable[..., Any]]
"""(operator as `aten::sum.dim_IntList`, dispatch key) -> kernel."""


@contextmanager
def kernels(table: Kernels) -> Iterator[None]:
    """Use the kernels of `table` in place of torch's own until the context ends."""
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel is overridden is the point
            for (name, key), kernel in table.items():
                library.impl(name.removeprefix("aten::"), kernel, key)
        yield
    finally:
        library._destroy()


def has_kernel(name: str, key: str) -> bool:
    """True if torch has a kernel of its own for the operator under the key."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def operator(name: str) -> Any:
    """The callable of `aten::sum` or `aten::sum.dim_IntList`, or None if this torch lacks it."""
    base, _, overload = name.removeprefix("aten::").partition(".")
    packet = getattr(torch.ops.aten, base, None)
    return getattr(packet, overload or "default", None) if packet is not None else None
