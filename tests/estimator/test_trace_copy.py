from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from dnnmem.estimator.trace import Event, Kind, Lane, Op, Part, Phase, Storage
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

OP = Op(
    name="f", module=("a",), phase=Phase.BACKWARD, lane=Lane.COMM, reads=(1,), writes=(2,), events=(Event(8, 1, 2),),
    releases=(2,), flops=3, masked_flops=1, moved_bytes=4, workspace_bytes=5, seconds=0.5, source="a.py:1",
)  # fmt: skip
STORAGE = Storage(
    id=1, nbytes=8, kind=Kind.PARAM, shape=(2,), dtype="float32", module=("a",), name="weight", channels_last=True,
    saved=True, parts=(Part(("a",), "weight", (1,)), Part(("b",), "weight", (1,))),
)  # fmt: skip


@pytest.mark.parametrize(("like", "old"), [(op_like, OP), (storage_like, STORAGE)], ids=["op", "storage"])
def test_a_copy_has_every_field(like, old):
    # GIVEN an object none of whose fields has its default
    defaults = {field.name: field.default for field in fields(old)}
    assert all(getattr(old, name) != default for name, default in defaults.items())
    # THEN a copy agrees with it in all of them, and is as frozen
    copy = like(old)
    assert copy == old
    assert hash(copy) == hash(old)
    assert copy is not old
    with pytest.raises(FrozenInstanceError):
        copy.module = ()


def test_what_is_given_is_changed_as_by_replace():
    changes = {"name": "g", "module": (), "phase": Phase.STEP, "reads": (), "writes": (3,), "events": (), "flops": 0}
    assert op_like(OP, **changes) == replace(OP, **changes)
    changes = {"masked_flops": 0, "moved_bytes": 0}
    assert op_like(OP, **changes) == replace(OP, **changes)
    changes = {"id": 0, "nbytes": 0, "kind": Kind.TEMP, "shape": (), "dtype": "", "module": (), "name": ""}
    assert storage_like(STORAGE, **changes, saved=False) == replace(STORAGE, **changes, saved=False)


def test_storages_are_renamed_everywhere():
    op = renamed(OP, {1: 5, 2: 6})
    assert (op.reads, op.writes, op.events) == ((5,), (6,), (Event(8, 1, 6),))
