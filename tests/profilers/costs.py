"""What the tests of operator costs share: a mode that lists them, and inputs without memory."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dnnmem.profilers.flops import op_cost

aten = torch.ops.aten


class Costs(TorchDispatchMode):
    """Lists `(operator, flops, moved_bytes)` of what runs inside."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls.append((str(func), *op_cost(func, args, kwargs, out)))
        return out


def calls_of(run):
    with Costs() as costs:
        run()
    return costs.calls


def flops_of(run):
    return sum(flops for _, flops, _ in calls_of(run))


def forward_and_backward(build):
    """Flops of the two halves: `build` makes inputs and returns a function of none."""
    forward = build()
    results = []
    first = flops_of(lambda: results.append(forward()))
    return first, flops_of(lambda: results[0].sum().backward())


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def cost(func, *args, **kwargs):
    return op_cost(func, args, kwargs, func(*args, **kwargs))
