"""What lies before the repeated blocks of a real model, and after them, by definition.

tokens, positions        | blocks.0, blocks.1, ... | norm, head
before                     blocks                    after
"""

from __future__ import annotations

from torch import nn

from dnnmem.estimator.block_list import Path
from dnnmem.profilers.found_blocks import blocks_of


def beside_blocks(model: nn.Module, *, tied: bool = False) -> tuple[list[nn.Module], list[nn.Module]]:
    """Modules with parameters of their own that are defined before the first block, and after the last one.

    Neither are those that hold blocks, those between lists, nor, unless `tied`, those that share a parameter with any
    other.
    """
    roots = {_path(name)[:-1] for name, _ in blocks_of(model)}
    names = [(_path(name), module) for name, module in model.named_modules()]
    inside = [n for n, (path, _) in enumerate(names) if any(path[: len(root)] == root for root in roots)]
    if not inside:
        return [], []
    holders = {root[:depth] for root in roots for depth in range(len(root) + 1)}
    shared = set() if tied else _shared(model)
    sides: tuple[list[nn.Module], list[nn.Module]] = ([], [])
    for n, (path, module) in enumerate(names):
        own = list(module.parameters(recurse=False))
        if own and path not in holders and not any(id(p) in shared for p in own):
            if n < inside[0]:
                sides[0].append(module)
            elif n > inside[-1]:
                sides[1].append(module)
    return sides


def _shared(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    twice: set[int] = set()
    for module in model.modules():
        for p in module.parameters(recurse=False):
            (twice if id(p) in seen else seen).add(id(p))
    return twice


def _path(name: str) -> Path:
    return tuple(name.split(".")) if name else ()
