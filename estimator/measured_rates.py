"""Which measured curve prices an op: where a calibration has one, it stands in the place of share times peak.

    product         gemm-SIDE, batched_gemm-SIDE for many     by flops, between curves of neighbouring shortest sides
    convolution     conv-SIDE, wide_conv_backward-SIDE, grouped_conv-SIDE, ...   by flops; wide: a window above 1x1
                    depthwise_conv-SIDE                                         SIDE: the window's elements
    attention       attention_forward-SIDE, attention_backward-SIDE              by flops; SIDE: the head's width
    traffic         gelu, native_layer_norm, ...: the operator's own; else its class: norm, stream, ...     by bytes

An element type that has curves of its own is named in front: `bfloat16-gemm-64`. A share divides its curve's seconds,
so that a few measured steps move both in the same way.

>>> sorted(sides({"gemm-64": "a", "gemm-512": "b", "gelu": "c"}, "gemm"))
[64.0, 512.0]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from dnnmem.estimator.curve import Curve, Floats, between
from dnnmem.estimator.op_class import ARITHMETIC, CONVOLUTIONS, OpClass
from dnnmem.estimator.time_model import TimeModel
from dnnmem.estimator.work import DTYPES, Work

T = TypeVar("T")
_LIKE = {OpClass.GROUP_NORM: OpClass.NORM, OpClass.SORT: OpClass.REDUCTION}
"""Kinds that no calibration measures, and whose curve stands for them."""


def sides(curves: Mapping[str, T], label: str) -> dict[float, T]:
    """The curves of `label` by their side; one without a side has side 1."""
    found = {name: curve for name, curve in curves.items() if name.rpartition("-")[0] == label}
    return {float(name.rpartition("-")[2]): curve for name, curve in found.items()} or (
        {1.0: curves[label]} if label in curves else {}
    )


def with_curves(work: Work, model: TimeModel, seconds: Floats) -> Floats:
    """`seconds` of the ops of `work`, those that have a curve priced by it; fixed costs are added elsewhere."""
    if not model.curves:
        return seconds
    keys = [_keys(work, index, int(dtype)) for index, dtype in enumerate(work.dtype)]
    found: dict[tuple[str, ...], dict[float, Curve]] = {}
    for key in set(keys):
        found[key] = next((held for label in key if (held := sides(model.curves, label))), {})
    for key, curves in found.items():
        if curves:
            rows = np.array([i for i, other in enumerate(keys) if other == key], np.intp)
            seconds[rows] = _priced(work, rows, curves, model)
    return seconds


def curve_of(work: Work, index: int) -> tuple[str, float, float]:
    """Name of the most special curve that prices an op, its size on it, and how many of that size the op is."""
    rows = np.array([index], np.intp)
    labels = _keys(work, index, 0)
    size, side, many = (float(part[0]) for part in _place(work, rows))
    dtype = DTYPES[work.dtype[index]]
    kind = OpClass(work.kind[index])
    plain = kind not in ARITHMETIC
    name = labels[len(labels) // 2] if plain else f"{labels[len(labels) // 2]}-{side:g}"
    return (name if plain or dtype == "float32" else f"{dtype}-{name}"), size, many


def _keys(work: Work, index: int, dtype: int) -> tuple[str, ...]:
    """Names under which the curve of an op may stand, the most special first; none for what has no kernel."""
    kind = OpClass(work.kind[index])
    if kind in (OpClass.NONE, OpClass.LANE):
        return ()
    labels = [kind.label] if kind in ARITHMETIC else [work.names[index], _LIKE.get(kind, kind).label]
    if kind in CONVOLUTIONS:
        labels = [kind.label + ("_backward" if work.backward[index] else "")]
        if kind is OpClass.CONV and work.window[index] > 1:
            labels.insert(0, f"wide_{labels[0]}")
    if kind is OpClass.GEMM and work.batch[index] > 1:
        labels.insert(0, "batched_gemm")
    return (*(f"{DTYPES[dtype]}-{text}" for text in labels), *labels)


def _place(work: Work, rows: npt.NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
    """Sizes on the curves of ops of one kind, their sides, and how many of that size each is."""
    kind = OpClass(work.kind[rows[0]])
    one = np.ones(len(rows))
    if kind not in ARITHMETIC:
        return work.bytes[rows], one, one
    many = work.batch[rows] if kind is OpClass.GEMM else one
    least = np.minimum(work.n[rows], work.k[rows])
    if kind in (OpClass.ATTENTION_FORWARD, OpClass.ATTENTION_BACKWARD):
        least = work.k[rows]
    elif kind is OpClass.DEPTHWISE_CONV:
        least = work.window[rows]
    elif kind in (OpClass.GEMM, OpClass.CONV):
        least = np.minimum(least, work.m[rows])
    return work.flops[rows] / many, least, many


def _priced(work: Work, rows: npt.NDArray[np.intp], curves: Mapping[float, Curve], model: TimeModel) -> Floats:
    size, side, many = _place(work, rows)
    share = getattr(model, OpClass(work.kind[rows[0]]).label, model.stream)
    return between(curves, size, side) * many / share
