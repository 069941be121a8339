"""Blocks' parameters come for each of their passes and go after it; their gradients go to the host."""

from __future__ import annotations

import pytest

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.offload_optimizer import HOST_UPDATE
from dnnmem.estimator.passes.offload_parameters import FETCH, SEND
from dnnmem.estimator.plan import Batch, Mesh, Offload, Plan, Remat, Sharding, check
from dnnmem.estimator.trace import Kind, Lane, Phase
from tests.estimator.passes.steps import gpt

STREAMED = Offload(parameters=True, optimizer=True)


def streamed(trace, **fields):
    [found] = rewrite(trace, Plan(**{"offload": STREAMED, **fields}))
    found.check()
    return found


def of_blocks(trace, kind):
    return [
        s for i, s in trace.storages.items() if s.kind is kind and s.module[:1] == ("blocks",) and i in trace.pinned
    ]


def test_blocks_come_twice_and_the_last_one_once():
    # GIVEN a step of four blocks
    trace = gpt(4)
    found = streamed(trace)
    fetches = [op for op in found.ops if op.name == FETCH]
    assert [op.module[1] for op in fetches if op.phase is Phase.FORWARD] == ["0", "1", "2", "3"]
    assert [op.module[1] for op in fetches if op.phase is Phase.BACKWARD] == ["2", "1", "0"]
    assert {op.lane for op in fetches} == {Lane.TO_DEVICE}
    # AND nothing of them rests on the GPU
    assert of_blocks(trace, Kind.PARAM)
    assert not of_blocks(found, Kind.PARAM)
    # AND each piece is as large as what it holds, aligned
    mine = sum(s.nbytes for s in of_blocks(trace, Kind.PARAM))
    assert mine <= sum(op.moved_bytes for op in fetches if op.phase is Phase.FORWARD) < 2 * mine


def test_gradients_leave_as_they_are_made():
    # GIVEN a step with its update on the host, and the same with blocks' parameters there
    trace = gpt(4)
    [before] = rewrite(trace, Plan(offload=Offload(optimizer=True)))
    found = streamed(trace)
    moved = [
        sum(op.moved_bytes for op in t.ops if op.lane is Lane.TO_HOST and op.name != HOST_UPDATE)
        for t in (before, found)
    ]
    # THEN as much goes to the host, before the update, and only what is outside of blocks comes back
    assert moved[0] == moved[1]
    sent = sum(op.moved_bytes for op in found.ops if op.name == SEND)
    back = [sum(op.moved_bytes for op in t.ops if op.name == "dnnmem.copy_to_device") for t in (before, found)]
    assert back[0] - back[1] == sent == sum(s.nbytes for s in of_blocks(trace, Kind.PARAM))


def test_blocks_may_stay():
    found = streamed(gpt(4), offload=Offload(parameters=True, optimizer=True, resident=2))
    assert [op.module[1] for op in found.ops if op.name == FETCH] == ["0", "2", "0"]
    assert {s.module[1] for s in of_blocks(found, Kind.PARAM)} == {"1", "3"}


def test_gradients_of_micro_batches_are_added_on_the_host():
    found = streamed(gpt(4), batch=Batch(accumulation=2))
    assert not of_blocks(found, Kind.GRAD)
    assert sum(op.name == SEND for op in found.ops) == len(of_blocks(gpt(4), Kind.PARAM))


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_what_is_computed_again_reads_the_copy_of_the_backward_pass(policy):
    streamed(gpt(4), remat=Remat(policy=policy))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mesh": Mesh(dp_replicate=2), "sharding": Sharding(strategy="ddp")}, "2 GPUs hold whole parameters"),
        ({"mesh": Mesh(dp_shard=2, pp=2), "sharding": Sharding(strategy="zero3")}, "pp is 2, ep 1"),
        ({"remat": Remat(policy="segments", segments="0-1")}, "computes several blocks again as one"),
        ({"offload": Offload(parameters=True, optimizer=True, resident=4)}, "finds 4 blocks in lists"),
    ],
)
def test_what_cannot_be_is_refused(fields, words):
    with pytest.raises(UnsupportedError, match=words):
        streamed(gpt(4), **fields)


@pytest.mark.parametrize("offload", [Offload(parameters=True), Offload(resident=1), Offload(resident=-1)])
def test_what_contradicts_itself_is_refused(offload):
    with pytest.raises(UsageError, match=r"offload\.(parameters|resident) is"):
        check(Plan(offload=offload))
