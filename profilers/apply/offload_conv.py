"""Offload of the inputs of convolutions done: the pass of the same name tells which, and when they go and come.

While the model runs, all that autograd saves is known by its storage; a convolution sends the one that it is called
with, so that others who saved it hold the copy too. Its memory is given back when the next convolution is done.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.plan import Plan
from dnnmem.profilers.apply.offload_copies import (
    Copies,
    Kept,
    View,
    before_backward,
    copies_of,
    is_movable,
    keep,
    let_go,
    view,
)


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` with its convolutions' inputs on the host. Raises `UnsupportedError` for a model without any."""
    convs = [module for module in model.modules() if isinstance(module, _ConvNd)]
    if not convs:
        raise UnsupportedError(
            f"offload.activations conv finds no convolution in {type(model).__name__}",
            hint="--set offload.activations=all",
        )
    travel = _Travel(min_bytes=plan.offload.min_bytes, copies=copies_of(plan))
    model.forward = wraps(model.forward)(partial(travel.run, model.forward))
    for conv in convs:
        conv.forward = partial(travel.convolve, conv.forward)
    return model


@dataclass(slots=True, eq=False)
class _Travel:
    """What is on the way, of a whole model."""

    min_bytes: int
    copies: Copies = field(default_factory=Copies)
    known: dict[int, tuple[StorageWeakRef, weakref.ref[Kept]]] = field(default_factory=dict)
    """What is saved, by its storage, which is no other one's while it is referred to."""
    given: set[int] = field(default_factory=set)
    """Addresses of what the model was called with: it stays."""
    before: list[weakref.ref[Kept]] = field(default_factory=list)
    """What the last convolution sent."""
    wanted: torch.Size | None = None
    """Shape of what the running convolution is called with; autocast may save a copy of it."""
    sent: list[weakref.ref[Kept]] = field(default_factory=list)
    """What it sent."""
    runs: bool = False
    """The model does."""

    def run(self, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What is called in the place of the model's forward."""
        if self.runs or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        self.given = {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, Tensor)}
        self.runs = True
        try:
            with saved_tensors_hooks(self._pack, self.copies.unpack):
                output = forward(*args, **kwargs)
        finally:
            self.runs, self.known = False, {}
            sent, self.before = self.before, []
            let_go(sent)
        if sent:
            before_backward(output, partial(self.copies.fetch, sent))
        return output

    def convolve(self, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What is called in the place of a convolution's forward."""
        tensor = next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)), None)
        if not self.runs or not torch.is_grad_enabled() or tensor is None:
            return forward(*args, **kwargs)
        kept = self._find(tensor)
        if kept is not None and kept.host is not None:  # another convolution has sent it
            return forward(*args, **kwargs)
        sent: list[weakref.ref[Kept]] = []
        if kept is not None:
            self.copies.send(kept)
            sent = kept.unit
        self.wanted, self.sent = (None if kept is not None else tensor.shape), sent
        try:
            output = forward(*args, **kwargs)
        finally:
            self.wanted, sent, self.sent = None, self.sent, []
        if sent:
            let_go(self.before)
            if self.before:
                before_backward(output, partial(self.copies.fetch, self.before))
            self.before = sent
        return output

    def _find(self, tensor: Tensor) -> Kept | None:
        known = self.known.get(tensor.untyped_storage()._cdata)
        return known[1]() if known is not None else None

    def _pack(self, tensor: Tensor) -> Tensor | View:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.given or not is_movable(tensor, self.min_bytes):
            return tensor
        kept = self._find(tensor)
        if kept is None:
            kept = keep(tensor, [])
            self.known[storage._cdata] = StorageWeakRef(storage), weakref.ref(kept)
            if tensor.shape == self.wanted:
                self.wanted, self.sent = None, kept.unit
                self.copies.send(kept)
        return view(kept, tensor)
