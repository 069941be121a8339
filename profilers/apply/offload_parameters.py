"""Blocks whose parameters rest on the host, done: each is on the GPU while it runs, the next one on its way (L2L).

    forward    [0]  fetch 1   drop 0 [1]  fetch 2   drop 1 [2]                the last one stays: it is needed next
    backward   [2]' fetch 1   drop 2 [1]' fetch 0   drop 1 [0]'               gradients leave as they are made

The model's parameters are those on the host: what clips, saves or updates them works there. A block computes with twins
on the GPU whose memory is taken and given back; autograd holds the twins, and views of them, all the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.streamed_blocks import aligned, check_streaming, streamed_blocks
from dnnmem.profilers.apply.offload_copies import before_backward
from dnnmem.profilers.found_blocks import blocks_of


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` with its blocks' parameters in the host's memory, pinned; all else is moved to the GPU, if there is one.

    Raises `UnsupportedError` for a model without blocks, and for what cannot go with it.
    """
    if not plan.offload.parameters:
        return model
    check_streaming(plan)
    if plan.splits_parameters:  # FSDP2's own policy (`sharding`)
        return model
    blocks = [block for _, block in blocks_of(model)]
    chosen = set(streamed_blocks(plan.offload, len(blocks)))
    place = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    others = _uses(model, blocks)
    streams = (torch.cuda.Stream(place), torch.cuda.Stream(place)) if place.type == "cuda" else None
    flow = _Flow(place=place, streams=streams)
    for number, block in enumerate(blocks):
        streamed = _streamed(block, place, others) if number in chosen else None
        if streamed is not None:
            flow.order.append(streamed)
        block.forward = partial(flow.run, block.forward, streamed)
    if place.type == "cuda":
        torch.cuda.empty_cache()  # the twins have no memory yet
    _OF_MODEL[model] = {id(p) for some in flow.order for p, _, _ in some.twins}
    _move_rest(model, _OF_MODEL[model], place)
    model.register_forward_pre_hook(lambda _, __: flow.begin_forward())
    for streamed in flow.order:
        for parameter, twin, _ in streamed.twins:
            if twin.requires_grad:
                twin.register_post_accumulate_grad_hook(partial(flow.leave, streamed, parameter))
    return model


def streamed_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters of an applied `model` that rest on the host."""
    return next((_OF_MODEL[module] for module in model.modules() if module in _OF_MODEL), set())


_OF_MODEL: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()


@dataclass(slots=True, eq=False)
class _Block:
    """A block that travels."""

    host: Tensor
    """All its parameters, pinned, in one piece."""
    device: Tensor
    """The same on the GPU; its memory comes and goes."""
    twins: list[tuple[nn.Parameter, nn.Parameter, list[tuple[nn.Module, str]]]]
    """A parameter on the host, its twin, and where modules have it."""
    places: dict[int, slice]
    """Bytes of a parameter within the piece, by its id."""
    gradients: Tensor | None = None
    """Room on the host, laid out alike."""
    terms: Tensor | None = None
    """The same for what is added to gradients that are there."""
    ready: torch.cuda.Event | None = None
    """After the copy to the GPU."""

    def __hash__(self) -> int:
        """By identity."""
        return id(self)


@dataclass(slots=True, eq=False)
class _Flow:
    """What is on the way, of a whole model."""

    place: torch.device
    streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None
    """Out and in; None without a GPU."""
    order: list[_Block] = field(default_factory=list)
    """The blocks that travel, as the model has them."""
    open: _Block | None = None
    """Whose backward pass runs."""
    held: list[Tensor] = field(default_factory=list)
    """Gradients of the block whose backward pass runs, being copied."""
    leaving: list[Tensor] = field(default_factory=list)
    """The same of the block before."""
    arrived: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    """Parameters and what is to be their gradients, or added to them, when the backward pass is over."""

    def begin_forward(self) -> None:
        """Fetch the first block while what lies before it runs."""
        self._close()
        self._fetch(self.order[0])

    def run(self, forward: Callable[..., Any], block: _Block | None, /, *args: Any, **kwargs: Any) -> Any:
        """What is called in the place of a block's forward; `block` None: its parameters stay on the GPU."""
        again = block is not None and block is self.open
        if block is not None and not again:
            self._fetch(block)
            self._fetch_beside(block, 1)
        output = self._with_twins(forward, block, args, kwargs) if block else forward(*args, **kwargs)
        if block is not None and not again and (block is not self.order[-1] or not torch.is_grad_enabled()):
            self._drop(block)
        if torch.is_grad_enabled() and not again:
            before_backward(output, partial(self._begin_backward, block))
        return output

    def _with_twins(self, forward: Callable[..., Any], block: _Block, args: Any, kwargs: Any) -> Any:
        self._wait(block)
        for _, twin, owners in block.twins:
            for module, name in owners:
                setattr(module, name, twin)
        try:
            return forward(*args, **kwargs)
        finally:
            for parameter, _, owners in block.twins:
                for module, name in owners:
                    setattr(module, name, parameter)

    def _begin_backward(self, block: _Block | None) -> None:
        """The block behind is done."""
        if block is not None and block is self.open:  # another output of it
            return
        self._close()
        self.open = block
        if block is not None:
            self._fetch(block)
            self._wait(block)
            self._fetch_beside(block, -1)

    def _close(self) -> None:
        if self.open is not None:
            self._drop(self.open)
        self.open = None
        if self.leaving and self.streams is not None:
            torch.cuda.current_stream(self.place).wait_stream(self.streams[0])
        self.leaving, self.held = self.held, []

    def leave(self, block: _Block, parameter: nn.Parameter, twin: Tensor) -> None:
        """Send a gradient that was just made to the host."""
        gradient = twin.grad
        twin.grad = None
        if gradient is None:
            return
        if not self.arrived:
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)
        adds = parameter.grad is not None
        room = block.terms if adds else block.gradients
        if room is None:
            room = torch.empty_like(block.host, pin_memory=block.host.is_pinned() if self.streams else False)
            if adds:
                block.terms = room
            else:
                block.gradients = room
        target = room[block.places[id(parameter)]].view(gradient.dtype).view(gradient.shape)
        self._copy(target, gradient, 0)
        self.held.append(gradient)
        self.arrived.append((parameter, target))

    @torch.no_grad()
    def _end_backward(self) -> None:
        """Gradients are there: the host has waited for the last copy."""
        self._close()
        self._close()
        if self.streams is not None:
            self.streams[0].synchronize()
            self.streams[1].synchronize()
        for parameter, gradient in self.arrived:
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad += gradient
        self.arrived = []

    def _fetch_beside(self, block: _Block, way: int) -> None:
        beside = self.order.index(block) + way
        if 0 <= beside < len(self.order):
            self._fetch(self.order[beside])

    def _fetch(self, block: _Block) -> None:
        storage = block.device.untyped_storage()
        if not storage.nbytes():
            storage.resize_(block.host.numel())
            block.ready = self._copy(block.device, block.host, 1)

    def _drop(self, block: _Block) -> None:
        self._wait(block)
        block.device.untyped_storage().resize_(0)

    def _wait(self, block: _Block) -> None:
        if block.ready is not None:
            torch.cuda.current_stream(self.place).wait_event(block.ready)
            block.ready = None

    @torch.no_grad()
    def _copy(self, to: Tensor, source: Tensor, way: int) -> torch.cuda.Event | None:
        if self.streams is None:
            to.copy_(source)
            return None
        stream = self.streams[way]
        stream.wait_stream(torch.cuda.current_stream(self.place))
        with torch.cuda.stream(stream):
            to.copy_(source, non_blocking=True)
            event: torch.cuda.Event = stream.record_event()
            return event


def _uses(model: nn.Module, blocks: list[nn.Module]) -> dict[int, int]:
    """How many of the model's parts, blocks and what is outside of them, have each parameter, by its id."""
    inside = {id(module) for block in blocks for module in block.modules()}
    found: dict[int, int] = {}
    outside = [p for module in model.modules() if id(module) not in inside for p in module.parameters(recurse=False)]
    for part in (outside, *(block.parameters() for block in blocks)):
        for i in {id(p) for p in part}:
            found[i] = found.get(i, 0) + 1
    return found


def _streamed(block: nn.Module, place: torch.device, uses: dict[int, int]) -> _Block | None:
    """A block whose own parameters are moved to the host; None if it has none."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if uses[id(parameter)] == 1:
                owners.setdefault(parameter, []).append((module, name))
    nbytes = sum(aligned(parameter.nbytes) for parameter in owners)
    if not nbytes:
        return None
    host = torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=place.type == "cuda")
    device = torch.empty(nbytes, dtype=torch.uint8, device=place)
    found = _Block(host=host, device=device, twins=[], places={})
    begin = 0
    for parameter, places in owners.items():
        bytes_of = slice(begin, begin + parameter.nbytes)
        begin += aligned(parameter.nbytes)
        there, twin = (
            piece[bytes_of].view(parameter.dtype).view(parameter.shape).data for piece in (host, device)
        )  # `data`: autograd counts changes of a parameter, and copies to its memory are none
        parameter.data = there.copy_(parameter.data)
        found.twins.append((parameter, nn.Parameter(twin, requires_grad=parameter.requires_grad), places))
        found.places[id(parameter)] = bytes_of
    device.untyped_storage().resize_(0)
    return found


@torch.no_grad()
def _move_rest(model: nn.Module, streamed: set[int], place: torch.device) -> None:
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in streamed and parameter.device != place:
                parameter.data = parameter.data.to(place)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(place))
