"""Which modules of a model are its repeated blocks: the numbered children of one module, all of one class.

    model.layers (ModuleList)          blocks of the step: model.layers.0, model.layers.1, model.layers.2
      0, 1, 2 (LlamaDecoderLayer)      their ops: a forward run each, in order; backward runs in the reverse order

A child that the model calls by a method of its own, or whose parts it calls, is no block: nothing can be done around
its call. Children of a Sequential or ModuleDict may be named `encoder_layer_0`, `encoder_layer_1`, ... Lists inside
blocks do not count. A residual network has several lists, one a stage. The first blocks of a model's only list may be
others: a dense one before the mixtures of experts, one that alone has a table of positions.

>>> modules = [Module(path=("h",), type="ModuleList"), *(Module(path=("h", str(i)), type="Block") for i in range(3))]
>>> ops = (Op(name="aten.mm.default", module=("h", "0", "up")),)
>>> [(blocks.root, blocks.count) for blocks in block_lists(Trace(ops=ops, storages={}, modules=tuple(modules)))]
[(('h',), 3)]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnnmem.estimator.trace import Module, Op, Phase, Trace

Path = tuple[str, ...]

_UNCALLED = ("ModuleList", "ModuleDict")
"""Hold modules and are never called, which is known of them without a run: they may be lists, and are no blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockList:
    """Children `0`, `1`, ... of one module, or `layer_0`, `layer_1`, ..., all of one class."""

    root: Path
    """Path of the module that holds them."""
    type: str
    """Class of each."""
    count: int
    """How many there are; 2 or more."""
    equal: bool
    """True if their modules agree in names and classes too."""
    prefix: str = ""
    """What stands before the number in each name."""
    others: int = 0
    """How many blocks at the beginning are not like those that follow, which agree."""

    @property
    def pattern(self) -> int:
        """The block that is like those after it: the second, or the first of two, or the first after the others."""
        return max(self.others, 0 if self.count == 2 else 1)

    def index(self, path: Path) -> int | None:
        """Number of the block that `path` lies in, None if it lies in none."""
        depth = len(self.root)
        if len(path) <= depth or path[:depth] != self.root or not path[depth].startswith(self.prefix):
            return None
        number = path[depth][len(self.prefix) :]
        return int(number) if number.isdigit() else None

    def numbers(self, ops: Sequence[Op]) -> list[int | None]:
        """The block that each op's module lies in."""
        known = {path: self.index(path) for path in {op.module for op in ops}}
        return [known[op.module] for op in ops]

    def path(self, index: int) -> Path:
        """Path of a block."""
        return (*self.root, f"{self.prefix}{index}")


def block_lists(trace: Trace) -> tuple[BlockList, ...]:
    """The outermost lists of blocks that run in the step, in definition order."""
    used = {op.module for op in trace.ops}
    children: dict[Path, list[Module]] = {}
    inner: dict[Path, list[Module]] = {}
    for module in trace.modules:
        if module.path:
            children.setdefault(module.path[:-1], []).append(module)
        for depth in range(len(module.path) + 1):
            inner.setdefault(module.path[:depth], []).append(module)
    found: list[BlockList] = []
    for parent in trace.modules:
        inside = children.get(parent.path, [])
        if any(parent.path[: len(known.root)] == known.root for known in found) or not _are_blocks(inside, used):
            continue
        shapes = [_shape(inner[child.path], child.path) for child in inside]
        others = max((n + 1 for n, shape in enumerate(shapes) if shape != shapes[-1]), default=0)
        found.append(
            BlockList(
                root=parent.path, type=inside[0].type, count=len(inside), equal=not others, prefix=_prefix(inside),
                others=others,
            )
        )  # fmt: skip
    return tuple(found)


def main_list(trace: Trace) -> BlockList | None:
    """The list with the most flops, then ops, of those whose blocks are equal; None if there is no such list.

    A model's only list counts too if all blocks but the first few are equal, two at least.
    """
    best: tuple[tuple[int, int], BlockList] | None = None
    lists = block_lists(trace)
    for blocks in lists:
        numbers = blocks.numbers(trace.ops)
        inside = [op.flops for op, number in zip(trace.ops, numbers, strict=True) if number is not None]
        size = (sum(inside), len(inside))
        if repeats(blocks, lists) and (best is None or size > best[0]):
            best = (size, blocks)
    return best[1] if best else None


def repeats(blocks: BlockList, lists: Sequence[BlockList]) -> bool:
    """Whether `blocks`, one of a model's `lists`, are equal, or are its only ones and so but for the first few."""
    return blocks.equal or (len(lists) == 1 and 0 < blocks.others <= blocks.count - 2)


def blocks_of_ops(ops: Sequence[Op], blocks: BlockList) -> list[int | None]:
    """The block of each op. What runs between two blocks, outside of both, belongs to the later one of the model."""
    found = blocks.numbers(ops)
    last = -1
    for k, block in enumerate(found):
        if block is None:
            continue
        before = found[last] if last >= 0 else None
        if before is not None and ops[last].phase is ops[k].phase is not Phase.STEP:
            for gap in range(last + 1, k):
                found[gap] = max(before, block)
        last = k
    return found


def _are_blocks(inside: Sequence[Module], used: set[Path]) -> bool:
    if len(inside) < 2 or len({m.type for m in inside}) != 1 or inside[0].type in _UNCALLED:
        return False
    if not all(m.called for m in inside):
        return False
    if [m.path[-1] for m in inside] != [f"{_prefix(inside)}{i}" for i in range(len(inside))]:
        return False
    depth = len(inside[0].path)
    running = {path[:depth] for path in used}
    # a run of equal leaves (three Linears, five ReLUs) is no list of blocks: each is one op; a stage runs some of them
    paths = {m.path for m in inside}
    return bool(paths & running) and any(len(path) > depth and path[:depth] in paths for path in used)


def _prefix(inside: Sequence[Module]) -> str:
    return inside[0].path[-1].removesuffix("0")


def _shape(modules: Sequence[Module], root: Path) -> tuple[tuple[Path, str], ...]:
    """Names and classes of a block's `modules`, itself among them."""
    depth = len(root)
    return tuple((m.path[depth:], m.type) for m in modules)
