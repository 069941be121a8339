"""What passes between the blocks of a model: found by running it once without memory, so that no stage has to ask.

parameters, buffers, batch on `meta`    ->    the loop's forward pass    ->    input of each block
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dnnmem.profilers.apply.pipeline_stage import Done, Forward, ends_at_backward
from dnnmem.profilers.tensors import map_tensors, tensors_in


def inputs_of(blocks: Sequence[nn.Module], model: nn.Module, forward: Forward, batch: Any) -> list[Tensor] | None:
    """The first tensor that each block is called with, on `meta`; None if the model cannot run there.

    Where a block cannot, what it was called with stands for those after it: a stream keeps its shape.
    """
    found: list[Tensor] = []
    handles = [block.register_forward_pre_hook(_noting(found), with_kwargs=True) for block in blocks]
    try:
        with torch.no_grad(), ends_at_backward():
            forward(_OnMeta(model), map_tensors(batch, lambda tensor: tensor.to("meta")))
    except Done:
        pass
    except Exception:  # noqa: BLE001  (whatever a model does on meta: PyTorch's stages will ask each other)
        if not found:
            return None
    finally:
        for handle in handles:
            handle.remove()
    return (found + found[-1:] * len(blocks))[: len(blocks)] if found else None


def _noting(found: list[Tensor]) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.extend(next([tensor.detach()] for tensor in tensors_in((*args, *kwargs.values()))))

    return note


class _OnMeta:
    """A model whose tensors have no memory while it is called."""

    def __init__(self, model: nn.Module) -> None:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        bare = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}

        def forward(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, bare, args, kwargs)

        forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]
        self.model, self.forward = model, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)
