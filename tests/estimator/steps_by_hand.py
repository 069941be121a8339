"""Steps made by hand for calibrations: so many products and so much traffic, on one H100."""

from __future__ import annotations

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace

H100 = find_cluster("h100-sxm-80gb:1")


def step(*, products=0, side=4096, sums=0, nbytes=2**28, tiny=0):
    """A prepared step of `products` squares of `side`, `sums` that write `nbytes`, and `tiny` operators."""
    storages, ops = {}, []

    def add(name, size, shape, flops, moved):
        i = len(storages)
        storages[i] = Storage(id=i, nbytes=size, kind=Kind.TEMP, shape=shape, dtype="bfloat16")
        events = (Event(size, 0, i), Event(-size, 0, i))
        ops.append(Op(name=name, writes=(i,), events=events, flops=flops, moved_bytes=moved, phase=Phase.FORWARD))

    for _ in range(products):
        add("aten.mm.default", 2 * side**2, (side, side), 2 * side**3, 6 * side**2)
    for _ in range(sums):
        add("aten.add.Tensor", nbytes, (nbytes // 2,), 0, 3 * nbytes)
    for _ in range(tiny):
        add("aten.add.Tensor", 512, (256,), 0, 1536)
    return local_step(Trace(ops=tuple(ops), storages=storages), Plan(), H100)
