"""Page faults of a CPU's step: large blocks always, the heap's end when it is large, nothing that is used again."""

from __future__ import annotations

from dnnmem.estimator.fresh_pages import fresh_bytes
from dnnmem.estimator.trace import Event, Kind, Op, Origin, Storage, Trace

MIB = 2**20


def trace(*blocks, device="cpu", gpu=None):
    """A step of one op a block, freed at once."""
    storages = {i: Storage(id=i, nbytes=n, kind=Kind.TEMP) for i, n in enumerate(blocks)}
    ops = tuple(
        Op(name="aten.add", writes=(i,), events=(Event(n, 0, i), Event(-n, 0, i))) for i, n in enumerate(blocks)
    )
    return Trace(ops=ops, storages=storages, origin=Origin(device=device, gpu=gpu))


def test_small_blocks_are_used_again():
    assert fresh_bytes(trace(MIB, MIB, 2 * MIB)).sum() == 0


def test_a_block_above_the_threshold_is_mapped_each_time():
    assert fresh_bytes(trace(MIB, 40 * MIB)).tolist() == [0, 40 * MIB]


def test_a_gpu_has_no_faults():
    assert fresh_bytes(trace(40 * MIB, gpu="h100-sxm-80gb")).sum() == 0
    assert fresh_bytes(trace(40 * MIB, device="cuda")).sum() == 0


def test_a_large_free_end_goes_back_and_faults_again():
    # GIVEN blocks that pile up to five times the largest and fall together
    storages = {i: Storage(id=i, nbytes=8 * MIB, kind=Kind.TEMP) for i in range(5)}
    up = [Op(name="aten.add", writes=(i,), events=(Event(8 * MIB, 0, i),)) for i in range(5)]
    down = [Op(name="aten.add", reads=(i,), events=(Event(-8 * MIB, 0, i),)) for i in reversed(range(5))]
    found = fresh_bytes(Trace(ops=(*up, *down), storages=storages, origin=Origin(device="fake")))
    # THEN some of them are mapped anew in each step, but not what malloc keeps
    assert 0 < found.sum() < 40 * MIB
