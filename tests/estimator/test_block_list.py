"""Which modules are a model's repeated blocks, and by what names."""

from __future__ import annotations

import pytest

from dnnmem.estimator.block_list import block_lists
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
