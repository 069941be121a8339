"""Which operators have values to keep on a virtual GPU, what each of them reads and writes, and how a CPU runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dnnmem.profilers.tensors import tensors_in

_NAMESPACES = ("aten", "c10d", "_c10d_functional")
_LATER = ("torchvision::nms",)
"""Operators of libraries that may be loaded later."""
_OVERWRITES = ("aten::copy_", "aten::fill_", "aten::zero_", "aten::zero", "aten::random_")
"""Operators that do not read what they write."""


class Operator:
    """An operator by name; looked up when it first runs, since most never do."""

    __slots__ = ("_found", "_name", "base")

    def __init__(self, name: str) -> None:
        """Args: `name` with its overload: `aten::mm.out`."""
        self._name, self._found = name, None
        self.base = name.partition(".")[0]
        """Without the overload."""

    def overload(self) -> Any:
        """As `torch.ops` has it."""
        if self._found is None:
            namespace, _, rest = self._name.partition("::")
            base, _, overload = rest.partition(".")
            self._found = getattr(getattr(getattr(torch.ops, namespace), base), overload or "default")
        return self._found


def find_operators(also: str) -> list[str]:
    """All operators, and `also`, but not those that only look at what is there.

    They need no values, and `detach` may not be watched.
    """
    names = [*_LATER]
    for name in torch._C._dispatch_get_all_op_names():
        if name.partition("::")[0] not in _NAMESPACES or not torch._C._dispatch_has_kernel(name):
            continue
        base, _, overload = name.partition(".")
        arguments = torch._C._get_schema(base, overload).arguments
        writes = [a.alias_info.is_write for a in arguments if a.alias_info is not None]
        if not writes or any(writes) or name == also:
            names.append(name)
    return names


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Tensors among the arguments that the operator changes."""
    if not func._schema.is_mutable:
        return []
    found: list[Any] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            if position < len(args):
                found.append(args[position])
            elif argument.name in kwargs:
                found.append(kwargs[argument.name])
    return list(tensors_in(found))


def read_by(func: Any, kwargs: dict[str, Any], on_gpu: list[Tensor]) -> list[Tensor]:
    """Tensors on the GPU whose values decide the result."""
    if func._schema.name in _OVERWRITES:
        return on_gpu[1:]
    if not kwargs:
        return on_gpu
    outs = {id(kwargs[a.name]) for a in func._schema.arguments if a.is_out and a.name in kwargs}
    return [tensor for tensor in on_gpu if id(tensor) not in outs] if outs else on_gpu


def run_on_cpu(
    func: Any,
    args: Any,
    kwargs: dict[str, Any],
    twin_of: Callable[[Tensor], Tensor],
    generator: Callable[[], torch.Generator],
) -> Any:
    """What `func` gives on the CPU, where `twin_of` gives the values of a tensor on the GPU."""

    def twin(value: Any) -> Any:
        if isinstance(value, Tensor):
            return twin_of(value) if value.is_cuda else value
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return [twin(v) for v in value] if isinstance(value, (list, tuple)) else value

    options = {name: twin(value) for name, value in kwargs.items()}
    values = [twin(value) for value in args]
    if torch.Tag.nondeterministic_seeded in func.tags:
        if any(argument.name == "generator" for argument in func._schema.arguments):
            options["generator"] = generator()
        else:
            return _with_random(generator(), lambda: func(*values, **options))
    if func._schema.name == "aten::histc" and not values[0].dtype.is_floating_point:
        return func(values[0].double(), *values[1:], **options).to(values[0].dtype)  # the CPU has none for integers
    return func(*values, **options)


def _with_random(generator: torch.Generator, call: Callable[[], Any]) -> Any:
    """`call` with random numbers of `generator`, though it takes the program's."""
    own = torch.default_generator
    before = own.get_state()
    own.set_state(generator.get_state())
    try:
        return call()
    finally:
        generator.set_state(own.get_state())
        own.set_state(before)
