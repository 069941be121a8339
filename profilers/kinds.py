"""What each storage of a step is for: parameters, gradients, optimizer states, activations, temporaries, inputs.

Owners are named first (`name_model`, `name_batch`, and hooks for gradients and optimizer states); `kind_of` then
decides for everything that operators made: what forward makes and backward finds alive is an activation, the rest is
temporary.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from dnnmem.estimator.trace import Kind, Phase
from dnnmem.profilers.record import Block, Recorder
from dnnmem.profilers.tensors import strided_parts

Names = dict[int, tuple[tuple[str, ...], str]]


def parameter_names(model: nn.Module) -> Names:
    """(module path, name) of each parameter by identity; a shared one belongs to the first module that holds it."""
    names: Names = {}
    for name, parameter in model.named_parameters():
        path = tuple(name.split("."))
        names[id(parameter)] = (path[:-1], path[-1])
    return names


def name_model(recorder: Recorder, model: nn.Module) -> None:
    """Name the storages of parameters and buffers."""
    for name, parameter in model.named_parameters():
        path = tuple(name.split("."))
        recorder.watch(parameter, Kind.PARAM, path[:-1], path[-1])
    for name, buffer in model.named_buffers():
        path = tuple(name.split("."))
        recorder.watch(buffer, Kind.BUFFER, path[:-1], path[-1])


def name_batch(recorder: Recorder, batch: object) -> None:
    """Name the storages of the batch."""
    for name, tensor in _leaves(batch, ""):
        recorder.watch(tensor, Kind.INPUT, (), name)


def name_rest(recorder: Recorder) -> None:
    """Name what else lives when a step begins: averages of weights, caches, whatever the program keeps."""
    is_tensor: dict[type, bool] = {}
    for thing in gc.get_objects():
        kind = type(thing)
        known = is_tensor.get(kind)
        if known is None:
            known = is_tensor[kind] = issubclass(kind, Tensor)
        if known and recorder.tracks(thing):
            recorder.find(thing)


@contextmanager
def naming_gradients(recorder: Recorder, names: Names, model: nn.Module) -> Iterator[set[int]]:
    """Name gradients as autograd finishes them, and optimizer states after each update.

    Gives the identities of the parameters that a gradient has reached.
    """
    reached: set[int] = set()

    def name_gradient(parameter: Tensor) -> None:
        reached.add(id(parameter))
        gradient = parameter.grad
        for part in strided_parts(gradient) if gradient is not None else ():
            recorder.watch(part, Kind.GRAD, *names[id(parameter)])

    def name_states(optimizer: Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            on_device = bool(group.get("fused") or group.get("capturable"))
            for parameter in group["params"]:
                _name_state(recorder, names, parameter, optimizer.state.get(parameter, {}), on_device=on_device)

    handles: list[Any] = [
        p.register_post_accumulate_grad_hook(name_gradient) for p in model.parameters() if p.requires_grad
    ]
    handles.append(register_optimizer_step_post_hook(name_states))
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


def unreached(model: nn.Module, optimizer: Optimizer, reached: set[int]) -> list[str]:
    """Names of trainable parameters that have no gradient, after steps that `reached` some."""
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) not in reached and p.grad is None and p not in optimizer.state
    ]


def _name_state(recorder: Recorder, names: Names, parameter: Tensor, state: Any, *, on_device: bool) -> None:
    module, name = names.get(id(parameter), ((), ""))
    for key, value in state.items():
        if not isinstance(value, Tensor) or not recorder.tracks(value):
            continue
        if value.dim() == 0 and key == "step" and not on_device:
            recorder.keep_on_host(value)
        else:
            recorder.watch(value, Kind.OPTIMIZER, module, f"{name}.{key}" if name else str(key))


def kind_of(block: Block, *, phase: Phase | None, outlives_forward: bool) -> Kind:
    """Kind of a storage: `phase` made it (None = it was found), `outlives_forward` says that backward found it alive.

    What backward makes and keeps for later is an activation that was computed again.
    """
    if block.kind is not None:
        return block.kind
    if phase is None:
        return Kind.BUFFER
    if block.saved and phase is not Phase.STEP:
        return Kind.ACTIVATION
    if phase is Phase.FORWARD and outlives_forward:
        return Kind.ACTIVATION
    return Kind.TEMP


def _leaves(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{name}.{i}" if name else str(i))
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _leaves(vars(value), name)
