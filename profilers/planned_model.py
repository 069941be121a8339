"""How the model of a plan is built where its parameters are split: it need not fit one GPU, nor this host.

    built       parameters on `meta`, without memory; buffers really, since code computes them (rotary tables)
    applied     each rank's parts are split off, still without memory
    filled      parts get memory on the GPU, and values: those of `reset_parameters`, else ones, zeros or small ones

Values are for running, not for training on: what a model's `__init__` did to its parameters beyond that is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.weak import WeakIdKeyDictionary

_STD = 0.02


def built_without_memory(make_model: Callable[[], nn.Module], say: Callable[[str], None]) -> nn.Module:
    """The model with parameters on `meta`, or really on the host where its code reads their values; `say` tells why."""
    with torch.device("cpu"):
        try:
            with _parameters_on_meta():
                return make_model()
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise
        say("its code reads the values of parameters: the model is built in the host's memory, as a whole")
        return make_model()


def built_on_host(make_model: Callable[[], nn.Module]) -> nn.Module:
    """The model in the host's memory, whatever device is the default: one that no GPU holds."""
    with torch.device("cpu"):
        return make_model()


def built_on_device(make_model: Callable[[], nn.Module], kind: str) -> nn.Module:
    """The model as after `model.to(kind)`: a default device is nothing to `torch.FloatTensor(n)` and `from_numpy`."""
    return make_model().to(kind)


def fill(model: nn.Module, device: torch.device, rest: torch.device | None = None) -> None:
    """Give what is on `meta` memory on `device` and values; what is elsewhere is moved there.

    `rest`: where parameters are, if not with buffers.
    """

    def place(t: torch.Tensor) -> torch.device:
        return rest if rest is not None and isinstance(t, nn.Parameter) else device

    known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fresh(t: torch.Tensor) -> torch.Tensor:
        if id(t) not in known:  # one for all modules that share it
            known[id(t)] = t, torch.empty_like(t, device=place(t)) if t.is_meta else t.to(place(t))
        return known[id(t)][1]

    tied = [places for places in _places(model) if len(places) > 1]
    empty = {id(module) for module in model.modules() if any(p.is_meta for p in module.parameters(recurse=False))}
    with torch.no_grad():
        apply: Any = model._apply
        apply(fresh)
        for (first, own), *others in tied:
            for module, name in others:
                module.register_parameter(name, getattr(first, own))
        for module in model.modules():
            if id(module) in empty:
                _initialise(module)


def _places(model: nn.Module) -> Iterable[list[tuple[nn.Module, str]]]:
    """Where modules have each plain parameter; FSDP2 keeps account of its own."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                found.setdefault(id(parameter), []).append((module, name))
    return found.values()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters lose their memory as soon as a module has them."""
    register = nn.Module.register_parameter
    known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            if param not in known:
                bare = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
                bare.__dict__.update(param.__dict__)
                known[param] = bare
            param = known[param]  # one for all modules that share it
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _initialise(module: nn.Module) -> None:
    """Values for a module's own parameters."""
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()
        return
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=_STD)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
