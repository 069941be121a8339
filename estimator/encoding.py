"""What a saved tensor becomes under `Plan.compression`, and what making and undoing that costs: memory, bytes, kernels.

    codes    groups of numbers, each as `low + step * code`: codes of 8, 4 or 2 bits, rounded at random (ActNN)
    rows     rows of a matrix added up with random signs, so that fewer are left
    sign     of a ReLU's output: is it above 0?                           \
    bool     truth values, eight in a byte                                 |  without loss (Gist)
    window   of max-pooling's places: where in its window each one is      |
    shape    of max-pooling's input: nothing, its gradient needs no values/

Chen et al. 2021 (ActNN), Jain et al. 2018 (Gist), Bershatsky et al. 2022 (projections of linear layers' inputs). The
arithmetic is that of `profilers/apply/codes.py`, op by op.

>>> codes = Encoding(kind="codes", bits=4)
>>> [(part.name, part.nbytes) for part in kept(codes, Shape(elements=1024, item_bytes=4))]
[('low', 16), ('step', 16), ('codes', 512)]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

MIN_BYTES = 1 << 16
"""Smaller tensors stay as they are."""
CHUNK = 1 << 23
"""Elements that are made into codes at a time."""


ENCODE, DECODE = "dnnmem.encode.", "dnnmem.decode."
"""Names of the ops, before the kind of encoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How a tensor is kept."""

    kind: str
    """`codes`, `rows`, `sign`, `bool`, `window` or `shape`."""
    bits: int = 8
    """Of a code: 8, 4 or 2."""
    group: int = 256
    """Elements that share a low and a step."""
    share: float = 1.0
    """Of the rows that is kept."""

    @property
    def parts(self) -> int:
        """Elements in a byte."""
        return 8 // self.bits if self.kind == "codes" else 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What of a tensor decides the cost."""

    elements: int
    """Of its storage."""
    item_bytes: int
    """Of an element."""
    columns: int = 1
    """Length of a row, for `rows`."""
    edges: tuple[int, int] = (1, 1)
    """Height and width of an image, for `window`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tensor that is kept instead."""

    name: str
    """What it holds."""
    nbytes: int
    """Its size; never 0."""
    dtype: str
    """Its element type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What encoding or decoding takes."""

    calls: tuple[tuple[int, str], ...]
    """Calls of the allocator in order: bytes (negative: given back) and what it is for, the name of a part, `out` or a
    temporary's."""
    moved_bytes: int
    """Bytes that its kernels read and write."""
    kernels: int
    """How many there are."""


def coded(encoding: Encoding, elements: int) -> int:
    """Elements that become codes or bits; the others, less than a round number, stay as they are."""
    unit = encoding.group * encoding.parts if encoding.kind == "codes" else 8
    return elements // unit * unit


def chunks(encoding: Encoding, elements: int) -> Iterator[int]:
    """Sizes of the pieces that are encoded at a time."""
    unit = encoding.group * encoding.parts
    size, left = max(CHUNK // unit, 1) * unit, coded(encoding, elements)
    while left > 0:
        yield min(size, left)
        left -= size


def kept_rows(encoding: Encoding, rows: int) -> int:
    """Rows that are left of so many."""
    return max(ceil(rows * encoding.share), 1)


def kept(encoding: Encoding, shape: Shape) -> tuple[Part, ...]:
    """What is kept of a tensor, in the order in which it is allocated."""
    n, item = shape.elements, shape.item_bytes
    whole = coded(encoding, n)
    rest = ((n - whole) * item, "raw")
    parts: list[tuple[str, int, str]] = []
    if encoding.kind == "codes":
        groups = 4 * whole // encoding.group
        parts = [("low", groups, "float32"), ("step", groups, "float32")]
        parts += [("codes", whole // encoding.parts, "uint8"), ("rest", rest[0], rest[1])]
    elif encoding.kind in ("sign", "bool"):
        parts = [("bits", whole // 8, "uint8"), ("rest", n - whole, "bool")]
    elif encoding.kind == "rows":
        rows = n // shape.columns
        parts = [
            ("signs", rows * item, "raw"),
            ("sums", kept_rows(encoding, rows) * shape.columns * item, "raw"),
        ]
    elif encoding.kind == "window":
        parts = [("places", n, "uint8")]
    return tuple(Part(name=name, nbytes=nbytes, dtype=dtype) for name, nbytes, dtype in parts if nbytes)


def encode(encoding: Encoding, shape: Shape) -> Cost:
    """What making the parts takes."""
    return _ENCODE[encoding.kind](encoding, shape, {part.name: part.nbytes for part in kept(encoding, shape)})


def decode(encoding: Encoding, shape: Shape) -> Cost:
    """What making the tensor again takes; it is `out`."""
    return _DECODE[encoding.kind](encoding, shape, {part.name: part.nbytes for part in kept(encoding, shape)})


def kernels_of(name: str, elements: int, kept_elements: Mapping[str, int]) -> int:
    """Kernels of an op called `name`, told from the elements of the tensor and of what is kept of it, by part.

    >>> kernels_of("dnnmem.encode.codes", 1 << 22, {"codes": 1 << 21, "low": 1 << 14, "step": 1 << 14})
    12
    """
    kind = name.rpartition(".")[2]
    encoding, columns = Encoding(kind=kind), 1
    if kind == "codes" and kept_elements.get("low"):
        planes = round(elements / kept_elements["codes"])
        group = planes * kept_elements["codes"] // kept_elements["low"]
        encoding = Encoding(kind=kind, bits=8 // planes, group=group)
    elif kind == "rows" and kept_elements.get("signs"):
        columns = max(elements // kept_elements["signs"], 1)
        encoding = Encoding(kind=kind, share=min(kept_elements["sums"] / elements, 1.0))
    cost = encode if name.startswith(ENCODE) else decode
    return cost(encoding, Shape(elements=elements, item_bytes=4, columns=columns)).kernels


def decoded_bytes(encoding: Encoding, shape: Shape) -> int:
    """Size of what is made of the parts: truth values for a ReLU's output, else the tensor's."""
    return shape.elements * (1 if encoding.kind == "sign" else shape.item_bytes)


def _made(parts: dict[str, int], *names: str) -> list[tuple[int, str]]:
    return [(parts[name], name) for name in names if name in parts]


def _with_temporary(nbytes: int, name: str) -> list[tuple[int, str]]:
    return [(nbytes, name), (-nbytes, name)]


def _encode_codes(encoding: Encoding, shape: Shape, parts: dict[str, int]) -> Cost:
    item, planes = shape.item_bytes, encoding.parts
    calls: list[tuple[int, str]] = []
    moved = kernels = 0
    for name in ("low", "step") if parts.get("codes") else ():
        narrow = parts[name] * item // 4
        calls += _made(parts, name) if item == 4 else [(narrow, "narrow"), (parts[name], name), (-narrow, "narrow")]
        moved += coded(encoding, shape.elements) * item + 2 * parts[name]
        kernels += 1 if item == 4 else 2
    kernels += 3  # a step is what lies between, over the levels, and not 0
    calls += _made(parts, "codes")
    for n in chunks(encoding, shape.elements):
        calls += [(4 * n, "above"), (4 * n, "noise"), (-4 * n, "above"), (-4 * n, "noise")]
        moved += n * (item + 4 + 4 + 12 + 8) + (4 * n + n) // planes
        kernels += 5
        if planes > 1:
            moved += 8 * n + 12 * n * (planes - 1) // planes
            kernels += planes
    return Cost(calls=(*calls, *_made(parts, "rest")), moved_bytes=moved, kernels=kernels)


def _decode_codes(encoding: Encoding, shape: Shape, parts: dict[str, int]) -> Cost:
    item, planes = shape.item_bytes, encoding.parts
    calls = [(shape.elements * item, "out")]
    moved = kernels = 0
    for n in chunks(encoding, shape.elements):
        if planes == 1:
            moved += n * (1 + item)
            kernels += 1
            continue
        plane = n // planes
        calls += _with_temporary(plane, "plane") * planes
        moved += planes * plane * (3 + item) + (planes - 2) * 2 * plane
        kernels += 3 * planes - 2
    return Cost(calls=tuple(calls), moved_bytes=moved + 2 * parts.get("rest", 0), kernels=kernels)


def _encode_bits(encoding: Encoding, shape: Shape, parts: dict[str, int]) -> Cost:
    n, bits = shape.elements, parts.get("bits", 0)
    calls = [*_made(parts, "bits", "rest")]
    moved = 2 * bits + 7 * 3 * bits
    if encoding.kind == "sign":
        calls = [(n, "truth"), *calls, (-n, "truth")]
        moved += n * (shape.item_bytes + 1)
    return Cost(calls=tuple(calls), moved_bytes=moved, kernels=8 + (encoding.kind == "sign"))


def _decode_bits(encoding: Encoding, shape: Shape, parts: dict[str, int]) -> Cost:
    return Cost(
        calls=((decoded_bytes(encoding, shape), "out"),), moved_bytes=(2 + 7 * 4) * parts.get("bits", 0), kernels=15
    )


def _encode_rows(encoding: Encoding, shape: Shape, parts: dict[str, int]) -> Cost:
    rows, row = shape.elements // shape.columns, shape.columns * shape.item_bytes
    left = kept_rows(encoding, rows)
    moved = 2 * left * row + (rows - left) * 3 * row
    return Cost(calls=tuple(_made(parts, "signs", "sums")), moved_bytes=moved, kernels=3 + ceil(rows / left))


def _decode_rows(encoding: Encoding, shape: Shape, _parts: dict[str, int]) -> Cost:
    rows, whole = shape.elements // shape.columns, shape.elements * shape.item_bytes
    return Cost(calls=((whole, "out"),), moved_bytes=2 * whole, kernels=ceil(rows / kept_rows(encoding, rows)))


def _encode_window(_encoding: Encoding, shape: Shape, parts: dict[str, int]) -> Cost:
    places, (height, width) = 8 * shape.elements, shape.edges
    calls = [(places, "row"), (places, "column")]
    calls += [*_with_temporary(8 * height, "first"), *_with_temporary(8 * width, "first")]
    calls += [*_made(parts, "places"), (-places, "row"), (-places, "column")]
    return Cost(calls=tuple(calls), moved_bytes=places * 14 + shape.elements, kernels=12)


def _decode_window(_encoding: Encoding, shape: Shape, parts: dict[str, int]) -> Cost:
    places, (height, width) = 8 * shape.elements, shape.edges
    calls = [(places, "out"), (places, "column")]
    calls += [*_with_temporary(8 * height, "first"), *_with_temporary(8 * width, "first"), (-places, "column")]
    return Cost(calls=tuple(calls), moved_bytes=places * 12 + parts.get("places", 0) * 2, kernels=12)


def _encode_nothing(_encoding: Encoding, _shape: Shape, _parts: dict[str, int]) -> Cost:
    return Cost(calls=(), moved_bytes=0, kernels=0)


def _decode_nothing(_encoding: Encoding, shape: Shape, _parts: dict[str, int]) -> Cost:
    return Cost(calls=((shape.elements * shape.item_bytes, "out"),), moved_bytes=0, kernels=0)


_ENCODE = {
    "codes": _encode_codes, "rows": _encode_rows, "sign": _encode_bits, "bool": _encode_bits,
    "window": _encode_window, "shape": _encode_nothing,
}  # fmt: skip
_DECODE = {
    "codes": _decode_codes, "rows": _decode_rows, "sign": _decode_bits, "bool": _decode_bits,
    "window": _decode_window, "shape": _decode_nothing,
}  # fmt: skip
