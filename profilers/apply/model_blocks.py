"""Which parts of a real model are its repeated blocks, and what lies before and after them: as passes find them.

    tokens, positions        | blocks.0, blocks.1, ... | norm, head
    before (by definition)     blocks                    after

Wrappers that earlier applies have put around blocks are looked through.

>>> model = nn.Sequential(nn.Linear(1, 1), nn.ModuleList(nn.Sequential(nn.Linear(1, 1)) for _ in range(2)), nn.ReLU())
>>> [name for name, _ in blocks_of(model)]
['1.0', '1.1']
"""

from __future__ import annotations

from torch import nn

from dnnmem.estimator.block_list import BlockList, Path, block_lists
from dnnmem.estimator.trace import Module, Op, Trace

_WRAPPED = "_checkpoint_wrapped_module"
"""Where torch's activation wrappers keep what they wrap."""


def blocks_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of all lists, in the order of the model, by name; all modules are taken to run."""
    found = []
    for blocks in lists_of(model):
        root = model.get_submodule(".".join(blocks.root))
        found += [(".".join(blocks.path(n)), child) for n, child in enumerate(root.children())]
    return found


def lists_of(model: nn.Module) -> tuple[BlockList, ...]:
    """The outermost lists of blocks, in the order of the model."""
    modules = tuple(Module(path=_path(name), type=_type(module)) for name, module in model.named_modules())
    known = {module.path: module for module in modules}  # a wrapper and what it wraps are one
    ops = tuple(Op(name="run", module=path) for path in known)
    return block_lists(Trace(ops=ops, storages={}, modules=tuple(known.values())))


def beside_blocks(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Modules with parameters of their own that are defined before the first block, and after the last one.

    Neither are those that hold blocks, those between lists, nor those that share a parameter with any other.
    """
    roots = [blocks.root for blocks in lists_of(model)]
    names = [(_path(name), module) for name, module in model.named_modules()]
    inside = [n for n, (path, _) in enumerate(names) if any(path[: len(root)] == root for root in roots)]
    if not inside:
        return [], []
    holders = {root[:depth] for root in roots for depth in range(len(root) + 1)}
    shared = _shared(model)
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
    return tuple(part for part in name.split(".") if part not in ("", _WRAPPED))


def _type(module: nn.Module) -> str:
    inner = getattr(module, _WRAPPED, module)
    return type(inner).__name__
