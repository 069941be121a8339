"""The arithmetic of `Plan.compression`: tensors made smaller, and made again. `estimator/encoding.py` counts its costs.

    codes    low, step of each group; code = floor((x - low) / step + u), u uniform in [0, 1): right on average
    rows     sums[i] = s[i] x[i] + s[i + k] x[i + k] + ..., signs s drawn; x is made again as s[i] sums[i mod k]
    bits     eight truth values in a byte
    window   where in its window max-pooling found each largest value

A byte holds elements that lie far apart, so that each step of packing goes over memory in order. Random numbers come
from a generator of their own: those that a model draws stay the same.

>>> x = torch.arange(512.0)
>>> packed = encode(Encoding(kind="codes", bits=8), x, torch.Generator())
>>> bool((decode(packed) - x).abs().max() <= 1)
True
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dnnmem.estimator.encoding import Encoding, chunks, coded, kept_rows

_TINY = 1e-30
"""Smallest step: that of a group whose elements are all alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How a max-pooling goes over its images; pairs are (down, across)."""

    kernel: tuple[int, int]
    """Size of a window."""
    stride: tuple[int, int]
    """From one window to the next."""
    padding: tuple[int, int]
    """What is put around an image."""
    dilation: tuple[int, int]
    """From one element of a window to the next."""
    width: int
    """Of the images it reads."""


@dataclass(slots=True, kw_only=True, eq=False)
class Packed:
    """What is kept of a tensor."""

    encoding: Encoding
    """How it is kept."""
    dtype: torch.dtype
    """Its element type."""
    elements: int
    """How many it has."""
    device: torch.device
    """Where it is."""
    parts: dict[str, Tensor] = field(default_factory=dict)
    """By the names in `encoding.kept`."""
    window: Window | None = None
    """Of the max-pooling, for `window`."""
    columns: int = 1
    """Length of its rows, for `rows`."""


def encode(
    encoding: Encoding,
    x: Tensor,
    generator: torch.Generator,
    *,
    columns: int = 1,
    window: Window | None = None,
) -> Packed:
    """What is kept of `x`: one dimension; for `window` the places as max-pooling gives them."""
    packed = Packed(
        encoding=encoding, dtype=x.dtype, elements=x.numel(), device=x.device, columns=columns, window=window
    )
    if encoding.kind == "codes":
        _encode_codes(packed, x, generator)
    elif encoding.kind == "rows":
        _encode_rows(packed, x.view(-1, columns), generator)
    elif encoding.kind == "sign":
        _encode_bits(packed, x > 0)
    elif encoding.kind == "bool":
        _encode_bits(packed, x)
    elif encoding.kind == "window" and window is not None:
        packed.parts["places"] = _places_in_window(x, window)
    return packed


def decode(packed: Packed) -> Tensor:
    """The tensor, or what stands for it: truth values for a ReLU's output, any values where only the shape counts."""
    kind = packed.encoding.kind
    if kind == "window" and packed.window is not None:
        return _places_in_image(packed.parts["places"], packed.window)
    dtype = torch.bool if kind == "sign" else packed.dtype
    out = torch.empty(packed.elements, dtype=dtype, device=packed.device)
    if kind == "codes":
        _decode_codes(packed, out)
    elif kind == "rows":
        _decode_rows(packed, out.view(-1, packed.columns))
    elif kind in ("sign", "bool"):
        _decode_bits(packed, out)
    return out


def _encode_codes(packed: Packed, x: Tensor, generator: torch.Generator) -> None:
    encoding, parts = packed.encoding, packed.parts
    whole, planes = coded(encoding, x.numel()), encoding.parts
    groups = x[:whole].view(-1, encoding.group)
    levels = 2**encoding.bits - 1
    low = parts["low"] = groups.amin(1, keepdim=True).float()
    step = parts["step"] = groups.amax(1, keepdim=True).float().sub_(low).div_(levels).clamp_(min=_TINY)
    codes = parts["codes"] = torch.empty(whole // planes, dtype=torch.uint8, device=x.device)
    at = 0
    for n in chunks(encoding, x.numel()):
        own = slice(at // encoding.group, (at + n) // encoding.group)
        noise = _placed(groups[own], low[own], step[own], generator).clamp_(max=levels)
        _write(encoding, noise, codes[at // planes : (at + n) // planes])
        del noise
        at += n
    _keep_rest(packed, x, whole)


def _placed(groups: Tensor, low: Tensor, step: Tensor, generator: torch.Generator) -> Tensor:
    """Where among the levels each element lies, and a random part of a level."""
    above = groups - low
    noise = torch.rand(above.shape, generator=generator, dtype=above.dtype, device=above.device)
    return noise.addcdiv_(above, step)


def _write(encoding: Encoding, levels: Tensor, codes: Tensor) -> None:
    planes = levels.view(encoding.parts, -1)
    if encoding.parts > 1:
        levels.floor_()
        for j in range(1, encoding.parts):
            planes[0].add_(planes[j], alpha=1 << j * encoding.bits)
    codes.copy_(planes[0])


def _decode_codes(packed: Packed, out: Tensor) -> None:
    encoding, parts = packed.encoding, packed.parts
    low, step, planes = parts["low"], parts["step"], encoding.parts
    at = 0
    for n in chunks(encoding, packed.elements):
        codes = parts["codes"][at // planes : (at + n) // planes]
        for j in range(planes):
            first, count = at + j * n // planes, n // planes
            own = slice(first // encoding.group, (first + count) // encoding.group)
            plane = _plane(encoding, codes, j)
            target = out[first : first + count].view(-1, encoding.group)
            torch.addcmul(low[own], plane.view(-1, encoding.group), step[own], out=target)
            del plane
        at += n
    _give_rest(packed, out, at)


def _plane(encoding: Encoding, codes: Tensor, j: int) -> Tensor:
    """The codes that are the bytes' `j`-th ones."""
    if encoding.parts == 1:
        return codes
    if j == 0:
        return codes.bitwise_and(2**encoding.bits - 1)
    plane = codes.bitwise_right_shift(j * encoding.bits)
    return plane if j == encoding.parts - 1 else plane.bitwise_and_(2**encoding.bits - 1)


def _encode_bits(packed: Packed, truth: Tensor) -> None:
    whole = coded(packed.encoding, truth.numel())
    planes = truth[:whole].view(torch.uint8).view(8, -1)
    bits = packed.parts["bits"] = planes[0].clone()
    for j in range(1, 8):
        bits.add_(planes[j], alpha=1 << j)
    _keep_rest(packed, truth, whole)


def _decode_bits(packed: Packed, out: Tensor) -> None:
    whole = coded(packed.encoding, packed.elements)
    planes, bits = out[:whole].view(torch.uint8).view(8, -1), packed.parts["bits"]
    torch.bitwise_and(bits, 1, out=planes[0])
    for j in range(1, 8):
        torch.bitwise_right_shift(bits, j, out=planes[j])
        planes[j].bitwise_and_(1)
    _give_rest(packed, out, whole)


def _keep_rest(packed: Packed, x: Tensor, whole: int) -> None:
    if whole < x.numel():
        packed.parts["rest"] = x[whole:].clone()


def _give_rest(packed: Packed, out: Tensor, whole: int) -> None:
    if "rest" in packed.parts:
        out[whole:].copy_(packed.parts["rest"])


def _encode_rows(packed: Packed, x: Tensor, generator: torch.Generator) -> None:
    rows = x.shape[0]
    signs = torch.empty(rows, 1, dtype=x.dtype, device=x.device)
    packed.parts["signs"] = signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    k = kept_rows(packed.encoding, rows)
    sums = packed.parts["sums"] = x[:k] * signs[:k]
    for at in range(k, rows, k):
        some = x[at : at + k]
        sums[: len(some)].addcmul_(some, signs[at : at + k])


def _decode_rows(packed: Packed, out: Tensor) -> None:
    signs, sums = packed.parts["signs"], packed.parts["sums"]
    k = len(sums)
    for at in range(0, len(out), k):
        some = out[at : at + k]
        torch.mul(sums[: len(some)], signs[at : at + k], out=some)


def _places_in_window(places: Tensor, window: Window) -> Tensor:
    row = places // window.width
    column = places.remainder(window.width)
    row.sub_(_first(places, window, 0))
    column.sub_(_first(places, window, 1))
    row.floor_divide_(window.dilation[0]).mul_(window.kernel[1])
    row.add_(column.floor_divide_(window.dilation[1]))
    return row.to(torch.uint8)


def _places_in_image(places: Tensor, window: Window) -> Tensor:
    row = places.long()
    column = row.remainder(window.kernel[1])
    row.floor_divide_(window.kernel[1]).mul_(window.dilation[0]).add_(_first(places, window, 0))
    column.mul_(window.dilation[1]).add_(_first(places, window, 1))
    return row.mul_(window.width).add_(column)


def _first(places: Tensor, window: Window, edge: int) -> Tensor:
    """The row, or column, at which each window begins."""
    count = places.shape[edge - 2]
    start, stride = -window.padding[edge], window.stride[edge]
    first = torch.arange(start, start + count * stride, stride, device=places.device)
    return first.view(-1, 1) if edge == 0 else first
