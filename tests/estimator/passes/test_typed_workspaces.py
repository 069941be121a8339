"""Workspaces of convolutions in half precision: two tensors transposed, their channels in eights."""

from __future__ import annotations

import pytest

from dnnmem.estimator.passes.autocast import autocast
from dnnmem.estimator.trace import Event, Kind, Op, Storage, Trace

N, SIDE = 2, 8


def step(*, workspace, groups=1, channels_last=False):
    """A convolution of 6 channels to 10 on images, in float32, with a workspace or none."""
    shapes = {0: (N, 6, SIDE, SIDE), 1: (10, 6 // groups, 3, 3), 2: (N, 10, SIDE, SIDE)}
    kinds = {0: Kind.INPUT, 1: Kind.PARAM, 2: Kind.TEMP}
    storages = {}
    for i, shape in shapes.items():
        nbytes = 4 * shape[0] * shape[1] * shape[2] * shape[3]
        storages[i] = Storage(
            id=i, nbytes=nbytes, kind=kinds[i], shape=shape, dtype="float32", channels_last=channels_last
        )
    made, space = Event(storages[2].nbytes, 0, 2), Event(workspace, 0, -1)
    events = (made, space, Event(-workspace, 0, -1)) if workspace else (made,)
    free = Op(name="aten.sum.default", module=("head",), reads=(2,), events=(Event(-storages[2].nbytes, 0, 2),))
    convolution = Op(name="aten.convolution.default", module=("conv",), reads=(0, 1), writes=(2,), events=events)
    return Trace(ops=(convolution, free), storages=storages, pinned=frozenset({0, 1}))


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"workspace": 1000}, [2 * N * SIDE * SIDE * (8 + 16)]),
        ({"workspace": 0}, []),
        ({"workspace": 1000, "groups": 2}, [500]),
        ({"workspace": 1000, "channels_last": True}, [500]),
    ],
)
def test_tensors_are_transposed_in_the_narrow_type(arguments, found):
    # GIVEN a convolution as recorded in float32  WHEN it runs under autocast
    trace = autocast(step(**arguments), "bfloat16")
    trace.check()
    # THEN its workspace is that of the kernels there, if anybody knew the recorded one
    [convolution] = (op for op in trace.ops if op.name == "aten.convolution.default")
    assert [e.nbytes for e in convolution.events if e.storage < 0 < e.nbytes] == found
