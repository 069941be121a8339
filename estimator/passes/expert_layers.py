"""Where a recorded step computes experts: modules with grouped products, what they are given and what they make.

    tokens (T, D), chosen (T, k), weights (T, k)  ->  rows (T k, D) in the order of experts  ->  sums (T, D)

A module whose parameters (E, ...) go into grouped products is *assumed* to hold E experts. Whatever else it does is
taken to be done row by row, so that fewer rows are less of all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from dnnmem.estimator.block_list import Path
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.draft import lives
from dnnmem.estimator.trace import Kind, Op, Phase, Storage, Trace

GROUPED = ("aten._grouped_mm", "transformers.grouped_mm_fallback")
"""Names of grouped products, without their overload."""
SENT = "dnnmem.all_to_all.ep"
"""Name of what carries rows to experts and back."""
HOW = "record transformers' own with --arg experts_implementation=grouped_mm"


@dataclass(slots=True, kw_only=True, eq=False)
class Layer:
    """The experts of one layer, called once."""

    module: Path
    """Their module."""
    experts: int = 0
    """E."""
    tokens: int = 0
    """T."""
    choices: int = 0
    """k."""
    forward: list[int] = field(default_factory=list)
    """Its ops of the forward pass."""
    backward: list[int] = field(default_factory=list)
    """Its ops of the backward pass, sums with gradients from elsewhere left out."""
    given: int = -1
    """Storage of the tokens."""
    chosen: int = -1
    """Storage of the choices."""
    weights: int = -1
    """Storage of their weights."""
    made: int = -1
    """Storage of the result."""
    back: int = -1
    """Storage of the result's gradient."""
    given_grad: int = -1
    """Storage of the tokens' gradient, before it is added to others."""
    weights_grad: int = -1
    """Storage of the weights' gradient; -1 = they have none."""

    @property
    def rows(self) -> int:
        """T k."""
        return self.tokens * self.choices


def find_layers(trace: Trace, ep: int) -> list[Layer]:
    """All layers of experts. Raises `UnsupportedError` for a step without, or where `ep` does not divide them."""
    found: dict[Path, Layer] = {}
    for op in trace.ops:
        if op.phase is Phase.FORWARD and op.name.rpartition(".")[0] in GROUPED:
            for s in (trace.storages[i] for i in op.reads):
                if s.kind is Kind.PARAM and len(s.shape) == 3:
                    found.setdefault(s.module, Layer(module=s.module, experts=s.shape[0]))
    if not found:
        raise UnsupportedError(f"ep is {ep}, but the step has no grouped products of experts to split", hint=HOW)
    layers = list(found.values())
    for layer in layers:
        if layer.experts % ep:
            raise UnsupportedError(
                f"{'.'.join(layer.module)} holds {layer.experts} experts; {layer.experts} % ep {ep} = "
                f"{layer.experts % ep}, but it must be 0"
            )
    _place(trace, layers)
    return layers


def owner_of(path: Path, modules: set[Path]) -> Path | None:
    """The module of `modules` that `path` is, or lies in."""
    return next((path[:n] for n in range(len(path), 0, -1) if path[:n] in modules), None)


def _place(trace: Trace, layers: list[Layer]) -> None:
    """Fill in where each layer is, and what goes in and out."""
    by_module = {layer.module: layer for layer in layers}
    modules = set(by_module)
    where: dict[Path, Path | None] = {path: owner_of(path, modules) for path in {op.module for op in trace.ops}}
    for k, op in enumerate(trace.ops):
        owner = where[op.module]
        if owner is not None and op.phase is not Phase.STEP:
            layer = by_module[owner]
            (layer.forward if op.phase is Phase.FORWARD else layer.backward).append(k)
    for layer in layers:
        while layer.backward and trace.ops[layer.backward[-1]].name.startswith("aten.add"):
            layer.backward.pop()
        _sizes(trace, layer)
        _ends(trace, layer)


def _sizes(trace: Trace, layer: Layer) -> None:
    """Tokens, choices, and what the forward pass is given."""
    storages = trace.storages
    inside = {i for k in layer.forward for i in trace.ops[k].writes}
    outer = dict.fromkeys(i for k in layer.forward for i in trace.ops[k].reads if i not in inside)
    data = [storages[i] for i in outer if storages[i].kind not in (Kind.PARAM, Kind.BUFFER)]
    products = [trace.ops[k] for k in layer.forward if trace.ops[k].name.rpartition(".")[0] in GROUPED]
    rows = _rows(products[0], storages)
    chosen = next((s for s in data if _numel(s) == rows and "int" in s.dtype), None)
    weights = next((s for s in data if _numel(s) == rows and "int" not in s.dtype), None)
    given = [s for s in data if s is not chosen and s is not weights]
    if chosen is None or weights is None or len(given) != 1 or len(chosen.shape) != 2:
        raise UnsupportedError(
            f"{'.'.join(layer.module)} is given {len(data)} tensors, not tokens, choices (T, k) and weights: its "
            "tokens cannot be sent", hint=HOW,
        )  # fmt: skip
    layer.tokens, layer.choices = chosen.shape
    layer.given, layer.chosen, layer.weights = given[0].id, chosen.id, weights.id


def _ends(trace: Trace, layer: Layer) -> None:
    """What leaves the layer, forward and backward."""
    known = lives(trace.ops)
    first, last = layer.forward[0], layer.forward[-1]
    made = [i for k in layer.forward for i in trace.ops[k].writes]
    out = [i for i in dict.fromkeys(made) if any(k > last and _is_forward(trace, k) for k in known[i].uses)]
    layer.made = next(iter(out), -1)
    if len(out) != 1 or last - first + 1 != len(layer.forward) or not layer.backward:
        raise UnsupportedError(f"{'.'.join(layer.module)} is called more than once, or gives {len(out)} tensors")
    inside = set(layer.backward)
    width = _numel(trace.storages[layer.given])
    written = {i for k in layer.backward for i in trace.ops[k].writes}
    layer.back = next(
        i
        for k in layer.backward
        for i in trace.ops[k].reads
        if i not in written and known[i].made > last and _numel(trace.storages[i]) == width
    )
    for i in dict.fromkeys(i for k in layer.backward for i in trace.ops[k].writes):
        s = trace.storages[i]
        if s.kind is Kind.GRAD or known[i].made not in inside or all(k in inside for k in known[i].uses):
            continue
        if _numel(s) == width:
            layer.given_grad = i
        elif _numel(s) == layer.rows:
            layer.weights_grad = i


def _is_forward(trace: Trace, k: int) -> bool:
    return trace.ops[k].phase is Phase.FORWARD


def _rows(product: Op, storages: Mapping[int, Storage]) -> int:
    """Rows of the first product's input."""
    return next(storages[i].shape[0] for i in product.reads if storages[i].kind is not Kind.PARAM)


def _numel(storage: Storage) -> int:
    return prod(storage.shape)
