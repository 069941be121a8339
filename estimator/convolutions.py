"""A convolution as the products that it is: what its op and the shapes of its storages tell.

input [8, 64, 56, 56], weight [64, 4, 3, 3]      ->      16 groups of  [25088, 36] @ [36, 4]
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from dnnmem.estimator.op_class import OpClass, is_backward
from dnnmem.estimator.trace import Op, Storage


def as_product(op: Op, storages: Mapping[int, Storage]) -> tuple[OpClass, float, float, float, float]:
    """Its class, and m, n, k and groups of the products that it is; a cube of as many flops where shapes are hidden."""
    # Forward reads input, weight; backward reads gradient, input, weight. Channels stand second.
    reads = [storages[i].shape for i in op.reads if i in storages]
    back = is_backward(op.name)
    result = reads[0] if back and reads else next((storages[i].shape for i in op.writes if i in storages), ())
    image = reads[1 if back else 0] if len(reads) > back else ()
    weight = reads[2 if back else 1] if len(reads) > 1 + back else ()
    if len(weight) < 3 or len(result) < 3 or len(image) < 3:
        side = (op.flops / 2) ** (1 / 3)
        return OpClass.CONV, side, side, side, 1.0
    groups = max(round(_channels(op, storages) / max(weight[1], 1)), 1)
    places, channels, length = prod(result) // result[1], result[1] // groups, prod(weight[1:])
    kind = OpClass.CONV if groups == 1 else OpClass.DEPTHWISE_CONV if weight[1] == 1 else OpClass.GROUPED_CONV
    return kind, float(places), float(max(channels, 1)), float(length), float(groups)


def window_elements(op: Op, storages: Mapping[int, Storage]) -> float:
    """Elements of its window: 9 for 3x3; 1 where it is hidden."""
    shapes = [storages[i].shape for i in op.reads if i in storages]
    weight = shapes[1 + is_backward(op.name)] if len(shapes) > 1 + is_backward(op.name) else ()
    return float(max(prod(weight[2:]), 1))


def is_turned(op: Op, storages: Mapping[int, Storage]) -> bool:
    """Whether its images' channels lie apart, which tensor cores do not take."""
    images = [storages[i] for i in (*op.reads[: 1 + is_backward(op.name)], *op.writes[:1]) if i in storages]
    half = any(s.dtype in {"float16", "bfloat16"} for s in images)
    return half and not any(s.channels_last for s in images)


def _channels(op: Op, storages: Mapping[int, Storage]) -> float:
    """Channels that a convolution reads: those of its input's gradient, or the share of the input that its bytes tell.

    An input that is a part of something larger has that one's shape here.
    """
    if is_backward(op.name):
        image, weight = storages[op.reads[1]].shape, storages[op.reads[2]].shape
        made = next((storages[i].shape for i in op.writes if i in storages and storages[i].shape != weight), ())
        return made[1] if made[2:] == image[2:] and len(made) > 2 else image[1]
    image_storage = storages[op.reads[0]]
    others = sum(storages[i].nbytes for i in {*op.reads[1:], *op.writes} - {op.reads[0]} if i in storages)
    read = op.moved_bytes - others
    return image_storage.shape[1] * (min(read / image_storage.nbytes, 1.0) if read > 0 else 1.0)
