"""Activation offload done: what blocks save goes to pinned memory as it is made, and comes back a block ahead.

    forward    [0] copies out   [1] copies out   [2] ...      the memory of 0 is given back when 1 is done, and so on
    backward   [2]: fetch 1     [1]: fetch 0     [0]          the model's last block keeps what it saves: it is next

Parameters stay. Blocks that are computed again as one send the input of the first: autograd's hooks stay from its call
to the end of the last one's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.sent_blocks import sent_runs
from dnnmem.profilers.apply import offload_conv
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
from dnnmem.profilers.apply.saved_parts import pack_part, unpack_part
from dnnmem.profilers.found_blocks import blocks_of


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` with activations on the host, as `plan.offload` says; names and state stay as they are.

    Raises `UnsupportedError` where nothing would travel, `UsageError` for blocks that the model does not have.
    """
    if plan.offload.activations == "none":
        return model
    if plan.offload.activations == "conv":
        return offload_conv.to_model(model, plan)
    blocks = blocks_of(model)
    travel = _Travel(min_bytes=plan.offload.min_bytes, copies=copies_of(plan))
    for first, last, sends in sent_runs(plan, len(blocks)):
        for number in range(first, last + 1):
            _, block = blocks[number]
            block.forward = partial(travel.run, block.forward, begins=number == first, ends=number == last, sends=sends)
    return model


@dataclass(slots=True, eq=False)
class _Travel:
    """What is on the way, of all blocks of a model."""

    min_bytes: int
    copies: Copies = field(default_factory=Copies)
    before: list[weakref.ref[Kept]] = field(default_factory=list)
    """What the block that ran last sent."""
    now: list[weakref.ref[Kept]] = field(default_factory=list)
    """What the one that runs sends."""
    hooks: saved_tensors_hooks | None = None
    """Its own, while it runs."""

    def run(
        self, forward: Callable[..., Any], /, *args: Any, begins: bool, ends: bool, sends: bool, **kwargs: Any
    ) -> Any:
        """What the model's code calls in the place of a block's forward."""
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if begins:
            self._open(sends=sends)
        try:
            output = forward(*args, **kwargs)
        except BaseException:
            self._close()
            raise
        if ends:
            self._close()
            let_go(self.before)
            if self.before:
                before_backward(output, partial(self.copies.fetch, self.before))
            self.before, self.now = self.now, []
        return output

    def _open(self, *, sends: bool) -> None:
        self.now = []
        if sends:
            pack: Callable[[Tensor], Tensor | View] = partial(self._pack, {}, self.now)
            self.hooks = saved_tensors_hooks(partial(pack_part, pack), partial(unpack_part, self.copies.unpack))
            self.hooks.__enter__()

    def _close(self) -> None:
        hooks, self.hooks = self.hooks, None
        if hooks is not None:
            hooks.__exit__()

    def _pack(self, mine: dict[int, weakref.ref[Kept]], unit: list[weakref.ref[Kept]], tensor: Tensor) -> Tensor | View:
        if not is_movable(tensor, self.min_bytes):
            return tensor
        place = tensor.untyped_storage().data_ptr()
        ref = mine.get(place)
        kept = ref() if ref is not None else None
        if kept is None:
            kept = keep(tensor, unit)
            mine[place] = weakref.ref(kept)
            self.copies.send(kept)
        return view(kept, tensor)
