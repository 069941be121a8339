"""What has been sent waits for the GPU before its memory serves again."""

from __future__ import annotations

from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.send_waits import IN_FLIGHT, microbatches_behind, with_waits
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace

MIB = 1 << 20


def sending(kernels, tensors=0):
    """A step that sends 32 MiB in each of two ops, then updates, with so many tensors of 1 MiB made at once."""
    storages = {i: Storage(id=i, nbytes=32 * MIB, kind=Kind.ACTIVATION) for i in (0, 1)}
    storages |= {i: Storage(id=i, nbytes=MIB, kind=Kind.TEMP) for i in range(2, 2 + tensors)}
    ops = [Op(name=f"f{i}", writes=(i,), events=(Event(32 * MIB, 0, i), Event(-32 * MIB, 0, i))) for i in (0, 1)]
    made = tuple(Event(sign * MIB, 0, i) for sign in (1, -1) for i in range(2, 2 + tensors))
    ops.append(Op(name="aten._foreach_sqrt.default", phase=Phase.STEP, events=made))
    found, early = with_waits(ops, [kernels, kernels, 1], {0, 1}, 2)
    trace = Trace(ops=tuple(found), storages=storages, setup=tuple(early))
    trace.check()
    return trace


def test_the_next_send_takes_other_memory_while_the_first_one_waits():
    # GIVEN a step about as long as a GPU's queue, and one of which each op is longer
    short, long = sending(IN_FLIGHT // 2 + 1), sending(2 * IN_FLIGHT)
    # THEN in the first one both sends still wait when the next step sends, in the second one only the one before does
    assert replay_trace(short).peak_reserved_bytes == 96 * MIB
    assert replay_trace(long, steps=3).peak_reserved_bytes == 64 * MIB
    assert replay_trace(short).peak_allocated_bytes == 32 * MIB


def test_a_wait_of_several_steps_holds_as_many_blocks():
    # GIVEN a step of a third of the queue
    trace = sending(IN_FLIGHT // 6)
    # THEN a step's sends wait beside those of the one before: two steps are the most that count
    sizes = [replay_trace(trace, steps=n).peak_reserved_bytes // (32 * MIB) for n in (1, 2, 3)]
    assert sizes == [2, 4, 4]


def test_an_update_that_makes_many_tensors_ends_waits():
    # GIVEN the same with 40 tensors made at once: the allocator asks so often that the host has waited
    ended = sending(IN_FLIGHT // 6, tensors=40)
    asked = sending(IN_FLIGHT // 6, tensors=4)
    # THEN a third step needs no more than the second one
    assert replay_trace(ended, steps=3).peak_reserved_bytes == replay_trace(ended, steps=2).peak_reserved_bytes
    assert replay_trace(asked, steps=3).peak_reserved_bytes > replay_trace(ended, steps=3).peak_reserved_bytes


def test_a_chunk_of_few_kernels_is_many_micro_batches_behind():
    ops = tuple(Op(name="aten.mm.default", flops=1) for _ in range(64))
    assert microbatches_behind(Trace(ops=ops, storages={})) == 16
    assert microbatches_behind(Trace(ops=(), storages={})) == 0
