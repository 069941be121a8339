"""The repeated blocks of a model that is about to run: the same ones that a pass finds in its trace.

>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))))
>>> [name for name, _ in blocks_of(model)]
['1.0', '1.1', '1.2']
"""

from __future__ import annotations

from torch import nn

from dnnmem.estimator.block_list import BlockList, block_lists
from dnnmem.estimator.trace import Module, Op, Trace


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the blocks of all outermost lists, in definition order; what never runs counts too."""
    found = [blocks.path(index) for blocks in lists_of(model) for index in range(blocks.count)]
    return [(name, model.get_submodule(name)) for name in map(".".join, found)]


def lists_of(model: nn.Module) -> tuple[BlockList, ...]:
    """The lists themselves, in definition order."""
    paths = {tuple(name.split(".")) if name else (): module for name, module in model.named_modules()}
    modules = tuple(Module(path=path, type=type(module).__name__) for path, module in paths.items())
    leaves = tuple(Op(name="", module=path) for path, module in paths.items() if next(module.children(), None) is None)
    return block_lists(Trace(ops=leaves, storages={}, modules=modules))
