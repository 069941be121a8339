"""How a module holds and uses its part: styles for torch's `parallelize_module`, over DTensor.

    column      x, whole --[W by outputs]--> part, a plain tensor
    row         part --[W by inputs]--> sum over ranks                  whole, or split along the sequence
    table       tokens --[rows of the vocabulary]--> sum over ranks     the same (not DTensor's own lookup, whose
                                                                        gradient is as large as the whole table)
    head        as a column, then gathered; or a DTensor that the loss takes by parts
    whole       norms and all else: parameters on every rank, a DTensor's or a plain tensor's work
    entrance    of a module with several columns: they take the same x, whose gradient is summed over ranks once

Under sequence parallelism what runs between them is a DTensor split along the sequence, whose shape is that of all of
it. With `local` parameters are plain tensors outside of the module's own call, for what cannot take DTensors (DDP).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement
from torch.nn import functional

_STREAM = ("hidden_states", "x", "input", "inputs")
"""Keywords that models give the stream to."""


@dataclass(kw_only=True, eq=False)
class Style(ParallelStyle):
    """One module's: how its parameters lie, and what its input and output are. Each module has its own."""

    params: Mapping[str, Placement] | None = field(default_factory=dict)
    """By name of a parameter; those not named are whole. None = they stay what they are."""
    parts: Sequence[int] = ()
    """Outputs of each thing that it makes; more than one are split one by one."""
    taken: Placement = field(default_factory=Replicate)
    """How an input that is a plain tensor lies."""
    wanted: Placement | None = None
    """What it is made before use; None = as it is."""
    given: Placement | None = None
    """What the output is made; None = as it is."""
    plain_output: bool = True
    """The output is a plain tensor; False = a DTensor."""
    local: bool = False
    """Parameters are plain tensors between calls."""
    all_taken: bool = False
    """Each tensor that it is given is an input; False = the first one is."""
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name of a local parameter: shape and stride of all of it."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        own = [] if self.params is None else list(module.named_parameters(recurse=False))
        for name, param in own:
            module.register_parameter(name, self._part(name, param, device_mesh))
        module.register_forward_pre_hook(lambda _, args, named: self._enter(args, named, device_mesh), with_kwargs=True)
        if self.local and own:
            _Held(self, module, device_mesh)
        module.register_forward_hook(lambda _, __, output: self._leave(output))
        return module

    def placement(self, name: str) -> Placement:
        """Of a parameter."""
        return (self.params or {}).get(name, Replicate())

    def _part(self, name: str, param: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
        if isinstance(param, DTensor):  # another module has it too
            return param
        whole, placement = param.detach(), self.placement(name)
        if len(self.parts) > 1 and placement.is_shard():
            whole = _by_rank(whole, self.parts, getattr(placement, "dim", 0), mesh.size())
        part = distribute_tensor(whole, mesh, [placement])
        self.sizes[name] = {"shape": part.shape, "stride": part.stride()}
        made: Tensor = part.to_local().clone() if self.local else part
        return nn.Parameter(made, requires_grad=param.requires_grad)

    def _enter(self, args: tuple[Any, ...], named: dict[str, Any], mesh: DeviceMesh) -> Any:
        if self.all_taken:
            made = tuple(self._taken(x, mesh) if isinstance(x, Tensor) else x for x in args)
            return made, {key: self._taken(x, mesh) if isinstance(x, Tensor) else x for key, x in named.items()}
        if args:
            return (self._taken(args[0], mesh), *args[1:]), named
        key = next((key for key in (*_STREAM, *named) if isinstance(named.get(key), Tensor)), None)
        return args, named if key is None else {**named, key: self._taken(named[key], mesh)}

    def _taken(self, x: Tensor, mesh: DeviceMesh) -> DTensor:
        made = x if isinstance(x, DTensor) else DTensor.from_local(x, mesh, [self.taken], run_check=False)
        if self.wanted is not None and made.placements != (self.wanted,):
            made = made.redistribute(placements=[self.wanted])
        return made

    def _leave(self, output: Any) -> Any:
        if not isinstance(output, DTensor):
            return output
        if self.given is not None and output.placements != (self.given,):
            output = output.redistribute(placements=[self.given])
        return output.to_local() if self.plain_output else output


@dataclass(kw_only=True, eq=False)
class Table(Style):
    """An embedding's, split along the vocabulary: tokens of other ranks' rows are 0 here."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        table: Any = module
        rows = -(-int(table.num_embeddings) // device_mesh.size())
        first = rows * device_mesh.get_local_rank()
        padding: int | None = table.padding_idx

        def forward(tokens: Tensor) -> DTensor:
            part: Tensor = table.weight.to_local()
            here = (tokens.to_local() if isinstance(tokens, DTensor) else tokens) - first
            outside = (here < 0) | (here >= len(part))
            here = here.masked_fill_(outside, 0)
            pad = padding - first if padding is not None and 0 <= padding - first < len(part) else None
            found = functional.embedding(here, part, pad).masked_fill_(outside[..., None], 0)
            return DTensor.from_local(found, device_mesh, [Partial()], run_check=False)

        table.forward = forward
        return super()._apply(module, device_mesh)


class _Held:
    """Plain parameters of a module that are DTensors while it runs."""

    def __init__(self, style: Style, module: nn.Module, mesh: DeviceMesh) -> None:
        self._style, self._mesh = style, mesh
        self._plain: dict[str, nn.Parameter] = {}
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, args: Any) -> None:
        del args
        for name, param in module._parameters.items():
            if param is not None and not isinstance(param, DTensor):
                self._plain[name] = param
                made: Any = DTensor.from_local(
                    param, self._mesh, [self._style.placement(name)], run_check=False, **self._style.sizes[name]
                )
                module._parameters[name] = made

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        del args, output
        module._parameters.update(self._plain)


def _by_rank(whole: Tensor, parts: Sequence[int], dim: int, ranks: int) -> Tensor:
    """Queries, keys and values of rank 0, then those of rank 1, ...: an even split gives each rank its own."""
    pieces = [part.chunk(ranks, dim) for part in whole.split(list(parts), dim)]
    return torch.cat([piece[rank] for rank in range(ranks) for piece in pieces], dim)
