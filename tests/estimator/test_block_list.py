"""Which modules are a model's repeated blocks, and by what names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.block_list import block_lists, main_list
from dnnmem.estimator.trace import Module, Op, Trace


def step(names, inside="mlp", root="layers", kind="Block"):
    """A step of a list whose children have these names, each with an op of a module inside."""
    modules = [Module(path=(root,), type="Sequential")]
    for name in names:
        modules += [Module(path=(root, name), type=kind), Module(path=(root, name, inside), type="Linear")]
    ops = tuple(Op(name="aten.mm.default", module=(root, name, inside)) for name in names)
    return Trace(ops=ops, storages={}, modules=tuple(modules))


@pytest.mark.parametrize("prefix", ["", "encoder_layer_", "block"])
def test_children_with_numbers_are_blocks_whatever_stands_before_them(prefix):
    # GIVEN a list whose children are numbered
    [blocks] = block_lists(step([f"{prefix}{i}" for i in range(12)]))
    # THEN each is known by its number, and found by it
    assert (blocks.root, blocks.count, blocks.equal) == (("layers",), 12, True)
    assert blocks.index(("layers", f"{prefix}11", "mlp")) == 11
    assert blocks.path(11) == ("layers", f"{prefix}11")
    assert blocks.index(("head", f"{prefix}1")) is None
    assert blocks.index(("layers", "other")) is None


@pytest.mark.parametrize("names", [["a", "b"], ["layer_1", "layer_2"], ["layer_0", "layer_2"], ["x_0", "y_1"], ["0"]])
def test_others_are_no_blocks(names):
    assert block_lists(step(names)) == ()


@pytest.mark.parametrize("kind", ["ModuleList", "ModuleDict"])
def test_a_list_of_lists_is_not_called_but_its_lists_hold_blocks(kind):
    # GIVEN stages that are plain lists, as Funnel's and SegFormer's: nothing calls a stage, so none runs again
    modules = [Module(path=("stages",), type="ModuleList")]
    for n in "01":
        modules.append(Module(path=("stages", n), type=kind))
        for k in "01":
            modules.append(Module(path=("stages", n, k), type="Block"))
            modules.append(Module(path=("stages", n, k, "mlp"), type="Linear"))
    ops = tuple(Op(name="aten.mm.default", module=m.path) for m in modules if m.type == "Linear")
    # WHEN blocks are looked for
    found = block_lists(Trace(ops=ops, storages={}, modules=tuple(modules)))
    # THEN they are those that are called
    assert [(blocks.root, blocks.count) for blocks in found] == [(("stages", "0"), 2), (("stages", "1"), 2)]


def test_what_is_not_called_is_no_block():
    # GIVEN a list whose children are called by a method of theirs: torch calls what is inside them only
    trace = step(["0", "1", "2"])
    modules = tuple(replace(m, called=len(m.path) != 2) for m in trace.modules)
    # THEN nothing can be done around a call of theirs
    assert block_lists(trace)
    assert block_lists(replace(trace, modules=modules)) == ()


def lists_of(*kinds):
    """A step of lists, of which each block holds one module of a kind: `m` or `d`."""
    modules, ops = [], []
    for root, some in zip("ab", kinds, strict=False):
        modules.append(Module(path=(root,), type="ModuleList"))
        for n, kind in enumerate(some):
            modules += [Module(path=(root, str(n)), type="Block"), Module(path=(root, str(n), "mlp"), type=kind)]
            ops.append(Op(name="aten.mm.default", module=(root, str(n), "mlp"), flops=1))
    return Trace(ops=tuple(ops), storages={}, modules=tuple(modules))


@pytest.mark.parametrize(
    ("kinds", "pattern"),
    [
        (["mmm"], 1), (["mm"], 0), (["dmm"], 1), (["ddmmm"], 2), (["dm"], None), (["dmd"], None), (["dmm", "dm"], None),
        (["dmmm", "mm"], 0),
    ],
)  # fmt: skip
def test_blocks_of_the_only_list_repeat_after_the_first_ones(kinds, pattern):
    # GIVEN blocks that differ at the beginning, at the end, or in one list of two  THEN those are found that repeat
    blocks = main_list(lists_of(*kinds))
    assert (blocks and blocks.pattern) == pattern
    if blocks is not None and blocks.others:
        assert not blocks.equal
