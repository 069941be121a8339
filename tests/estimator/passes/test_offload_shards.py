"""Parts of FSDP2 that rest on the host."""

from __future__ import annotations

import pytest

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.offload_shards import FETCH, SEND
from dnnmem.estimator.plan import Mesh, Offload, Plan, Sharding
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Kind, Phase
from tests.estimator.passes.steps import gpt

FSDP = {"mesh": Mesh(dp_shard=4), "sharding": Sharding(strategy="zero3")}
THERE = Offload(parameters=True, optimizer=True)


def rewritten(**fields):
    [found] = rewrite(gpt(4), Plan(**fields))
    found.check()
    return found


def test_parts_and_their_gradients_take_no_memory():
    # GIVEN a step whose update runs on the host, and the same with the parameters there
    near, there = rewritten(**FSDP, offload=Offload(optimizer=True)), rewritten(**FSDP, offload=THERE)
    parts = sum(near.storages[i].nbytes for i in near.pinned if near.storages[i].kind is Kind.PARAM)
    # THEN nothing of them rests on the GPU, and the peak falls by at least the parameters
    assert not any(there.storages[i].nbytes for i in there.pinned if there.storages[i].kind in {Kind.PARAM, Kind.GRAD})
    assert replay_trace(there).peak_allocated_bytes <= replay_trace(near).peak_allocated_bytes - parts


def test_parts_come_for_each_gather_and_gradients_leave_once():
    found = rewritten(**FSDP, offload=THERE)
    ops = [op.name for op in found.ops]
    # THEN each gather waits for its parts, and each sum leaves in the backward pass
    assert ops.count(FETCH) == ops.count("dnnmem.all_gather.dp_shard")
    assert ops.count(SEND) == ops.count("dnnmem.reduce_scatter.dp_shard")
    assert all(op.phase is Phase.BACKWARD for op in found.ops if op.name == SEND)
    # AND the update moves nothing a second time
    assert not any(op.moved_bytes for op in found.ops if op.name in {"dnnmem.copy_to_host", "dnnmem.copy_to_device"})


def test_blocks_cannot_stay():
    with pytest.raises(UnsupportedError, match="policy is for all of them"):
        rewritten(**FSDP, offload=Offload(parameters=True, optimizer=True, resident=1))
