"""Profiles a model that exists already, in this process: what `dnnmem.profile(model, batch)` does.

Training steps change weights, so they are made on a copy of model and optimizer; on `fake` the copy has shapes only.
The generator of random numbers is put back. What the step does to other objects of the program, it does.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import DnnmemError, ModelError, UnsupportedError, UsageError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Kind, Origin, Trace
from dnnmem.profilers.cpu import profile_cpu
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.request import STEPS
from dnnmem.profilers.step import MakeLoss, Target, plain_step
from dnnmem.profilers.targets.optimizers import optimizer_of
from dnnmem.profilers.tensors import map_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Objects of the program, and how a step is made of them."""

    model: nn.Module
    """On the CPU."""
    batch: Any
    """As `make_batch` would return it."""
    optimizer: Optimizer | str = "adamw"
    """Over the model's parameters; or the name of one, `sgd:momentum=0.9`."""
    loss: MakeLoss | None = None
    """`loss(output, batch)`; None = the output holds it."""


def profile_live(
    live: Live, *, device: str, gpu: Device | None, steps: int | None = None, repeats: int = 5
) -> tuple[Trace, Measurement]:
    """Trace and measurement of a step on `device`, `cpu` or `fake`. Raises a `DnnmemError`."""
    if device not in {"cpu", "fake"}:
        raise UnsupportedError(
            f"a model that exists in this process cannot be profiled on {device}",
            hint="give device='cpu' or 'fake', or the target that builds it: 'model.py', 'package.mod:make_model'",
        )
    elsewhere = sorted({t.device.type for t in _tensors(live.model) if t.device.type != "cpu"})
    if elsewhere:
        raise UnsupportedError(
            f"the model has tensors on {', '.join(elsewhere)}",
            hint="give the model on the CPU: device='fake', gpu='h100' tells what it needs on a GPU",
        )
    name = type(live.model).__name__
    origin = Origin(target=name, device=device, gpu=gpu.name if gpu else None, versions=_versions())
    state = torch.get_rng_state()
    try:
        if device == "cpu":
            return _without_strangers(
                *profile_cpu(
                    _target(live, name), steps=steps or STEPS["cpu"], repeats=repeats, origin=origin, on_step=_ignore
                )
            )
        return profile_fake(_target(live, name), steps=steps or STEPS["fake"], origin=origin, on_step=_ignore, gpu=gpu)
    except DnnmemError:
        raise
    except Exception as error:
        raise ModelError(f"the training step failed: {type(error).__name__}: {error}") from error
    finally:
        torch.set_rng_state(state)


def _without_strangers(trace: Trace, measurement: Measurement) -> tuple[Trace, Measurement]:
    """Without the tensors of the program that the step never touches, the model that was copied among them."""
    touched = {i for op in trace.ops for i in (*op.reads, *op.writes, *(event.storage for event in op.events))}
    unnamed = {i for i, s in trace.storages.items() if s.kind is Kind.BUFFER and not s.module and not s.name}
    strangers = (trace.pinned & unnamed) - touched
    nbytes = sum(trace.storages[i].nbytes for i in strangers)
    kept = replace(
        trace,
        storages={i: s for i, s in trace.storages.items() if i not in strangers},
        setup=tuple(event for event in trace.setup if event.storage not in strangers),
        pinned=trace.pinned - strangers,
    )
    measured = measurement.allocated_bytes
    return kept, replace(measurement, allocated_bytes=None if measured is None else measured - nbytes)


def _target(live: Live, name: str) -> Target:
    made: list[Optimizer] = []

    def make_model() -> nn.Module:
        memo = dict(_twins(live)) if _is_fake() else {}
        optimizer = live.optimizer if isinstance(live.optimizer, Optimizer) else None
        model, own = copy.deepcopy((live.model, optimizer), memo)
        made[:] = [own] if own is not None else []
        return model

    def make_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
        if made:
            return made[0]
        assert isinstance(live.optimizer, str)  # noqa: S101 - else it was copied
        return optimizer_of(live.optimizer)(parameters)

    def rescale(batch_size: int, _: int | None) -> Target:
        raise UsageError(f"a batch that exists cannot be made of {batch_size} samples")

    return Target(
        name=name,
        make_model=make_model,
        make_batch=lambda: live.batch,
        make_optimizer=make_optimizer,
        train_step=plain_step(live.loss),
        batch=_sizes(live.batch),
        rescale=rescale,
    )


def _is_fake() -> bool:
    return any(isinstance(mode, FakeTensorMode) for mode in _get_current_dispatch_mode_stack())


def _twins(live: Live) -> Iterator[tuple[int, Any]]:
    """What a copy takes in the place of each tensor: a fake one. Weights need no values, the rest keeps small ones."""
    states = _leaves(list(live.optimizer.state.values())) if isinstance(live.optimizer, Optimizer) else []
    for tensor in [*_tensors(live.model), *states]:
        if isinstance(tensor, nn.Parameter):
            twin = nn.Parameter(torch.empty_like(tensor), requires_grad=tensor.requires_grad)
            if tensor.grad is not None:
                twin.grad = torch.empty_like(tensor.grad)
            yield id(tensor), twin
        else:
            yield id(tensor), tensor.detach().clone()


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _sizes(batch: object) -> dict[str, int | str]:
    first = next((tensor for tensor in _leaves(batch) if tensor.dim()), None)
    return {} if first is None else {"batch_size": first.shape[0]}


def _leaves(value: object) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    return found


def _versions() -> dict[str, str]:
    from dnnmem import __version__

    python = ".".join(map(str, sys.version_info[:3]))
    return {"dnnmem": __version__, "python": python, "torch": str(torch.__version__)}


def _ignore(_: int) -> None:
    return
