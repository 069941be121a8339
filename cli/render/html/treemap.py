"""Who holds the memory at the peak, as areas: squarified (Bruls, Huizing, van Wijk 2000), modules within modules.

    +--------------+------+      a cell      a module's bytes of one kind
    | blocks.0     | head |      a group     a module that can be zoomed into; its cells lie inside it
    |  [mlp] [attn]|      |      a screen    a module whose groups are labelled together: the whole model first;
    +--------------+------+                  a module that only numbers its blocks gives way to them

Places are in percent of the whole picture, so that it has any width, and zooming is arithmetic.

>>> squarify([6, 2, 2], 0, 0, 10, 10)
[(0, 0, 6.0, 10.0), (6.0, 0, 4.0, 5.0), (6.0, 5.0, 4.0, 5.0)]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dnnmem.cli.render.html.cells import swatch
from dnnmem.cli.render.palette import look
from dnnmem.cli.render.text import place
from dnnmem.estimator.units import format_bytes

Box = tuple[float, float, float, float]
"""x, y, width, height."""

WIDTH, HEIGHT = 1100.0, 420.0
"""Shape that the squares are made for."""
_MOST = 2500
"""Cells of a picture; what is smaller is drawn with its ancestors."""
_GIVES_WAY = 0.4
"""A group of numbered blocks that holds more of its screen than this shows them instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Bytes of one kind."""

    kind: str
    """Name of its colour."""
    module: str
    """Dotted path."""
    title: str
    """Told on request."""
    box: Box
    """In percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A module with what is inside it."""

    module: str
    """Dotted path."""
    label: str
    """Its name on its screen."""
    size: str
    """Bytes in words."""
    screen: str
    """The module whose screen it is labelled on; empty for the whole model."""
    is_screen: bool
    """It can be zoomed into."""
    box: Box
    """In percent."""


@dataclass(slots=True, eq=False)
class _Node:
    path: tuple[str, ...] = ()
    own: dict[str, int] = field(default_factory=dict)
    children: dict[str, _Node] = field(default_factory=dict)
    nbytes: int = 0
    box: Box = (0.0, 0.0, 0.0, 0.0)


def treemap(held: Mapping[tuple[str, str], int]) -> tuple[list[Cell], list[Group]]:
    """Cells and groups for bytes by module (dotted path) and kind; nothing of what is empty."""
    root = _tree({key: nbytes for key, nbytes in held.items() if nbytes > 0})
    least = 0.0
    while len(cells := list(_cells(root, (0.0, 0.0, WIDTH, HEIGHT), least))) > _MOST and least < root.nbytes:
        least = max(2 * least, root.nbytes / 50_000)
    return cells, list(_groups(root, root, ""))


def squarify(sizes: Sequence[float], x: float, y: float, width: float, height: float) -> list[Box]:
    """Boxes for `sizes`, which fall, filling the box: rows along the shorter side, each as square as can be."""
    boxes: list[Box] = []
    left = float(sum(sizes))
    start = 0
    while start < len(sizes) and left > 0:
        short = min(width, height)
        scale = width * height / left
        end, row = start + 1, sizes[start]
        while end < len(sizes) and _worst(sizes[start : end + 1], row + sizes[end], short, scale) <= _worst(
            sizes[start:end], row, short, scale
        ):
            row += sizes[end]
            end += 1
        thick = row * scale / short if short else 0.0
        at = y if width >= height else x
        for value in sizes[start:end]:
            long = short * value / row
            boxes.append((x, at, thick, long) if width >= height else (at, y, long, thick))
            at += long
        if width >= height:
            x, width = x + thick, width - thick
        else:
            y, height = y + thick, height - thick
        left -= row
        start = end
    return boxes


def _worst(sizes: Sequence[float], row: float, short: float, scale: float) -> float:
    """The largest ratio of sides in a row."""
    area = row * scale
    largest, smallest = sizes[0] * scale, sizes[-1] * scale
    return max(short * short * largest / (area * area), area * area / (short * short * smallest)) if smallest else 9e99


def _tree(held: Mapping[tuple[str, str], int]) -> _Node:
    root = _Node()
    for (module, kind), nbytes in held.items():
        node = root
        node.nbytes += nbytes
        for part in module.split(".") if module else ():
            node = node.children.setdefault(part, _Node(path=(*node.path, part)))
            node.nbytes += nbytes
        node.own[kind] = node.own.get(kind, 0) + nbytes
    return root


def _cells(node: _Node, box: Box, least: float) -> Iterator[Cell]:
    node.box = box
    parts: list[tuple[int, str | _Node]] = [(nbytes, kind) for kind, nbytes in node.own.items()]
    parts += [(child.nbytes, child) for child in node.children.values()]
    parts.sort(key=lambda part: -part[0])
    module = ".".join(node.path)
    for (nbytes, part), inner in zip(parts, squarify([n for n, _ in parts], *box), strict=True):
        if isinstance(part, str) or nbytes < least:
            kind = part if isinstance(part, str) else max(_kinds(part), key=lambda item: item[1])[0]
            name = place(module if isinstance(part, str) else ".".join(part.path))
            title = f"{name}: {look(kind).label} {format_bytes(nbytes)}"
            yield Cell(kind=swatch(kind), module=module, title=title, box=_percent(inner))
        else:
            yield from _cells(part, inner, least)


def _kinds(node: _Node) -> Iterator[tuple[str, int]]:
    yield from node.own.items()
    for child in node.children.values():
        yield from _kinds(child)


def _groups(node: _Node, screen: _Node, name: str) -> Iterator[Group]:
    """Groups of a screen, then those of the screens inside."""
    for part, child in node.children.items():
        label = f"{name}.{part}" if name else part
        numbered = len(child.children) > 1 and all(key.isdecimal() for key in child.children)
        if numbered and child.nbytes > _GIVES_WAY * screen.nbytes:
            yield from _groups(child, screen, label)
            continue
        if child.box[2] * child.box[3] <= 0:
            continue
        yield Group(
            module=".".join(child.path),
            label=label,
            size=format_bytes(child.nbytes),
            screen=".".join(screen.path),
            is_screen=bool(child.children) or len(child.own) > 1,
            box=_percent(child.box),
        )
        yield from _groups(child, child, "")


def _percent(box: Box) -> Box:
    x, y, width, height = box
    return (
        round(100 * x / WIDTH, 3),
        round(100 * y / HEIGHT, 3),
        round(100 * width / WIDTH, 3),
        round(100 * height / HEIGHT, 3),
    )
