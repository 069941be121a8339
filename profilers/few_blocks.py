"""A model with a few of its equal blocks, recorded in the place of the whole: `estimator.repeat` adds the others again.

    blocks 0, 1, 2, ... 31 of one class, with equal parameters and settings    ->    0, 1, 2, and that there were 32

It is exact where blocks do the same, so that nothing is left out of a model whose blocks differ in a number, a word or
a shape. What tells a block its own number (`layer_idx`) does not count. First blocks that are others are kept besides.

>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(8))))
>>> keep_few(model, 3), len(model[1])
(Kept(root=('1',), blocks=8), 3)
>>> keep_few(nn.Sequential(*(nn.Dropout(p / 10) for p in range(8))), 3) is None
True
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from dnnmem.estimator.block_list import BlockList, Path, main_list, repeats
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.recorded import BLOCKS
from dnnmem.estimator.trace import Trace
from dnnmem.profilers.found_blocks import lists_of
from dnnmem.profilers.step import Target

_SIMPLE = (int, float, str, bool, type(None), tuple)
_HOLDERS = (nn.ModuleList, nn.Sequential)


class Kept(NamedTuple):
    """What was cut short."""

    root: Path
    """Path of the list."""
    blocks: int
    """Blocks that it had."""


def few_blocks(target: Target, count: int) -> tuple[Target, list[Kept]]:
    """`target` with a model of `count` blocks; the list tells, once the model is made, whether there were more."""
    found: list[Kept] = []

    def make_model() -> nn.Module:
        model = target.make_model()
        kept = keep_few(model, count)
        found[:] = [kept] if kept else []
        return model

    return replace(target, make_model=make_model), found


def marked(trace: Trace, kept: Kept) -> Trace:
    """`trace`, saying how many blocks the model has. Raises `UnsupportedError` if others do most of its work."""
    blocks = main_list(trace)
    if blocks is None or blocks.root != kept.root:
        raise UnsupportedError(f"{'.'.join(kept.root)} is not where {trace.origin.target} does most of its work")
    return replace(trace, batch={**trace.batch, BLOCKS: kept.blocks})


def keep_few(model: nn.Module, count: int) -> Kept | None:
    """Cut the longest list of equal blocks to `count`, at least 3; None = there is none longer, nothing was done."""
    lists = sorted(lists_of(model), key=lambda blocks: -blocks.count)
    if not lists or not repeats(lists[0], lists):
        return None
    blocks = lists[0]
    count = max(count, blocks.others + 2)
    if blocks.count <= count:
        return None
    holder = model.get_submodule(".".join(blocks.root))
    if not isinstance(holder, _HOLDERS) or not _are_equal(holder, blocks) or _is_shared(model, holder):
        return None
    del holder[count:]
    return Kept(blocks.root, blocks.count)


def _are_equal(holder: nn.Module, blocks: BlockList) -> bool:
    children = list(holder.children())[blocks.others :]
    first = _settings(children[0], blocks.others)
    return all(_settings(child, n) == first for n, child in enumerate(children, blocks.others))


def _settings(block: nn.Module, number: int) -> list[Any]:
    """Whatever may tell two blocks apart; numbers equal to the block's own are its name."""
    found: list[Any] = []
    for name, module in block.named_modules():
        values = {
            key: None if value == number and "id" in key else value
            for key, value in vars(module).items()
            if isinstance(value, _SIMPLE) and not key.startswith("__")
        }
        shapes = [(key, tuple(p.shape), p.dtype, p.requires_grad) for key, p in module.named_parameters(recurse=False)]
        buffers = [(key, tuple(b.shape), b.dtype) for key, b in module.named_buffers(recurse=False)]
        found.append((name, type(module), values, shapes, buffers))
    return found


def _is_shared(model: nn.Module, holder: nn.Module) -> bool:
    """True if a block stands at another place of the model too, or shares a parameter with what does."""
    inside = {id(m) for m in holder.modules()}
    others = [m for m in model.modules() if id(m) not in inside]
    mine = [id(p) for child in holder.children() for p in child.parameters()]
    return len(mine) != len(set(mine)) or not {id(p) for m in others for p in m.parameters(recurse=False)}.isdisjoint(
        mine
    )
