"""Which lines the table of layers has: repeated blocks folded into one, deep modules summed into their ancestors.

A fold is a run of consecutive sibling indices whose subtrees are equal in everything but the index. What belongs to one
moment or one clock, bytes at the peak and seconds, differs from block to block and does not break a fold: it is summed.

    h.0.ln   h.0.mlp.fc                 h.0-2.ln       x3
    h.1.ln   h.1.mlp.fc      -->        h.0-2.mlp.fc   x3       and with depth=2:    h.0-2   x3
    h.2.ln   h.2.mlp.fc

>>> blocks = [Layer(module=f"h.{i}.fc", type="Linear", param_bytes=8, peak_bytes=8 + i) for i in range(3)]
>>> [(row.label, row.count, row.one.param_bytes, row.peak_bytes) for row in fold_rows(blocks)]
[('h.0-2.fc', 3, 8, 27)]
>>> [row.label for row in fold_rows(blocks, fold=False)]
['h.0.fc', 'h.1.fc', 'h.2.fc']
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from dnnmem.estimator.profile import Layer

MAX_ROWS = 30
"""What `choose_depth` calls a table that can be read at a glance."""

_SUMMED = (
    "param_bytes", "grad_bytes", "optimizer_bytes", "activation_bytes", "peak_bytes", "forward_flops", "backward_flops",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    label: str
    """Dotted path with folded indices: `h.0-11.attn`."""
    count: int
    """How many modules it stands for."""
    one: Layer
    """One of them, with what is inside it if the line is a summary; its seconds are the mean of all."""
    peak_bytes: int
    """Bytes alive at the peak, all of them together."""
    inside: int
    """How many modules within each are summed into it."""
    own: bool
    """True if lines of modules inside it follow, so that this one holds only the module's own share."""


@dataclass(slots=True, eq=False)
class _Node:
    layer: Layer | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    signature: object = None


def fold_rows(layers: Sequence[Layer], *, depth: int | None = None, fold: bool = True) -> list[Row]:
    """Lines for `layers` in their order; modules deeper than `depth` names are summed into their ancestor.

    Args: `depth` is None for no limit; `fold=False` keeps every block and also the modules that hold and do nothing.
    """
    root = _tree(layers)
    return [row for row in _rows("", [root], depth, fold=fold) if not fold or not _is_empty(row)]


def choose_depth(layers: Sequence[Layer], *, limit: int = MAX_ROWS) -> int | None:
    """The largest depth whose folded table has at most `limit` lines, at least 1; None if no limit is needed."""
    deepest = max((len(_path(layer.module)) for layer in layers), default=1)
    if len(fold_rows(layers)) <= limit:
        return None
    fitting = (depth for depth in range(deepest, 1, -1) if len(fold_rows(layers, depth=depth)) <= limit)
    return next(fitting, 1)


def _path(module: str) -> tuple[str, ...]:
    return tuple(module.split(".")) if module else ()


def _tree(layers: Sequence[Layer]) -> _Node:
    root = _Node()
    for layer in layers:
        node = root
        for name in _path(layer.module):
            node = node.children.setdefault(name, _Node())
        node.layer = layer if node.layer is None else _sum([node.layer, layer])
    _sign(root)
    return root


def _sign(node: _Node) -> object:
    children = tuple((name, _sign(child)) for name, child in node.children.items())
    own = node.layer and replace(node.layer, module="", peak_bytes=0, forward_seconds=None, backward_seconds=None)
    node.signature = (own, children)
    return node.signature


def _rows(label: str, nodes: list[_Node], depth: int | None, *, fold: bool) -> Iterator[Row]:
    first = nodes[0]
    if depth == 0 and first.children:
        yield _row(label, [_summary(node) for node in nodes], inside=_size(first) - 1, own=False)
        return
    if first.layer is not None:
        yield _row(label, [node.layer for node in nodes if node.layer], inside=0, own=bool(first.children))
    deeper = None if depth is None else depth - 1
    for name, names in _runs(first, fold=fold):
        inner = [node.children[n] for node in nodes for n in names]
        yield from _rows(f"{label}.{name}" if label else name, inner, deeper, fold=fold)


def _runs(node: _Node, *, fold: bool) -> Iterator[tuple[str, list[str]]]:
    run: list[str] = []
    for name, child in node.children.items():
        follows = run and run[-1].isdecimal() and name.isdecimal() and int(name) == int(run[-1]) + 1
        if run and not (fold and follows and child.signature == node.children[run[-1]].signature):
            yield _run_name(run), run
            run = []
        run.append(name)
    if run:
        yield _run_name(run), run


def _run_name(run: Sequence[str]) -> str:
    return run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}"


def _row(label: str, layers: Sequence[Layer], *, inside: int, own: bool) -> Row:
    forward, backward = (
        _add([getattr(layer, name) for layer in layers]) for name in ("forward_seconds", "backward_seconds")
    )
    n = len(layers)
    one = replace(
        layers[0],
        forward_seconds=None if forward is None else forward / n,
        backward_seconds=None if backward is None else backward / n,
    )
    peak_bytes = sum(layer.peak_bytes for layer in layers)
    return Row(label=label, count=n, one=one, peak_bytes=peak_bytes, inside=inside, own=own)


def _summary(node: _Node) -> Layer:
    total = _sum(list(_layers(node)))
    return replace(total, type=node.layer.type if node.layer else "")


def _layers(node: _Node) -> Iterator[Layer]:
    if node.layer is not None:
        yield node.layer
    for child in node.children.values():
        yield from _layers(child)


def _size(node: _Node) -> int:
    return sum(1 for _ in _layers(node)) + (node.layer is None)


def _sum(layers: Sequence[Layer]) -> Layer:
    """Sums; of temporaries, which do not live together, the largest."""
    return replace(
        layers[0],
        **{name: sum(getattr(layer, name) for layer in layers) for name in _SUMMED},
        temp_bytes=max(layer.temp_bytes for layer in layers),
        forward_seconds=_add([layer.forward_seconds for layer in layers]),
        backward_seconds=_add([layer.backward_seconds for layer in layers]),
    )


def _add(seconds: Sequence[float | None]) -> float | None:
    known = [s for s in seconds if s is not None]
    return sum(known) if known else None


def _is_empty(row: Row) -> bool:
    one = row.one
    sizes = (*(getattr(one, name) for name in _SUMMED), one.temp_bytes, row.peak_bytes)
    return not any(sizes) and one.forward_seconds is None and one.backward_seconds is None
