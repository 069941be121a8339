"""Tensor parallelism splits work, weights and activations as Megatron does, with Megatron's collectives."""

from __future__ import annotations

from collections import Counter

import pytest

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.passes.tensor import apply
from dnnmem.estimator.plan import Mesh, Plan, Tensor, check
from dnnmem.estimator.simulate import simulate
from dnnmem.estimator.trace import Kind, Lane, Phase
from tests.estimator.passes.steps import LLAMA, WRITTEN, gpt, passes_peak

MODELS = pytest.mark.parametrize("arguments", [{}, LLAMA, WRITTEN], ids=["gpt", "llama", "written scores"])
STREAM = 2 * 32 * 64 * 4
"""Bytes of the residual stream: batch, tokens, width, float32."""
LOGITS = 2 * 32 * 320 * 4


def split(trace, tp=2, **options):
    found = apply(trace, Plan(mesh=Mesh(tp=tp), tensor=Tensor(**options)))
    found.check()
    return found


def collectives(trace):
    return Counter((op.name.split(".")[1], op.phase.value, op.moved_bytes) for op in trace.ops if op.lane is Lane.COMM)


@MODELS
@pytest.mark.parametrize("sequence", [False, True])
def test_products_and_weights_are_divided(arguments, sequence):
    # GIVEN a language model of 3 blocks  WHEN four ranks share it
    trace = gpt(3, **arguments)
    found = split(trace, 4, sequence_parallel=sequence)
    # THEN each does a quarter of the products and holds a quarter of each matrix, of its gradient and states
    assert sum(op.flops for op in found.ops) * 4 == sum(op.flops for op in trace.ops)
    for i, storage in trace.storages.items():
        if (
            storage.kind in {Kind.PARAM, Kind.OPTIMIZER}
            and len(storage.shape) == 2
            and storage.module != ("positions",)
        ):
            assert found.storages[i].nbytes * 4 == storage.nbytes


@MODELS
def test_ranks_sum_twice_a_block_each_way(arguments):
    # GIVEN 3 blocks, an embedding and a head, each split
    found = collectives(split(gpt(3, **arguments)))
    assert found == {
        ("all_reduce", "forward", STREAM): 2 * 3 + 1,
        ("all_reduce", "backward", STREAM): 2 * 3 + 1,
        ("all_gather", "forward", LOGITS): 1,
    }


@MODELS
def test_sequence_parallelism_gathers_again_for_gradients(arguments):
    # GIVEN the same with the stream split along the sequence, and a loss over split logits
    trace = gpt(3, **arguments)
    found = split(trace, sequence_parallel=True, loss_parallel=True)
    known = collectives(found)
    # THEN each sum is a scatter, each split product gathers, and each saved input is gathered again
    assert known["reduce_scatter", "forward", STREAM] == known["reduce_scatter", "backward", STREAM] == 7
    assert known["all_gather", "forward", STREAM] == 7
    assert known["all_gather", "backward", STREAM] == 14  # 7 saved inputs, 6 gradients of sums, the embedding's
    assert passes_peak(found) < 0.55 * passes_peak(trace)


def test_one_rank_changes_nothing():
    assert apply(gpt(3), Plan()) is gpt(3)


def test_sums_stand_between_their_last_term_and_their_reader():
    found = split(gpt(3))
    sums = [k for k, op in enumerate(found.ops) if op.name == "dnnmem.all_reduce.tp" and op.phase is Phase.FORWARD]
    for k in sums:
        [term], [i] = found.ops[k].reads, found.ops[k].writes
        assert term in found.ops[k - 1].writes
        assert any(i in op.reads for op in found.ops[k + 1 :])


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(UnsupportedError, match=r"192 % tp 5 = 2"):
        split(gpt(3), 5)


def test_gathered_sequences_that_are_kept_are_gathered_once():
    # GIVEN sequence parallelism, which gathers the stream again for the gradients of matrices
    again = split(gpt(3, **LLAMA), sequence_parallel=True)
    kept = split(gpt(3, **LLAMA), sequence_parallel=True, keep_gathered=True)
    gathers = [
        sum(n for (kind, *_), n in collectives(trace).items() if kind == "all_gather") for trace in (again, kept)
    ]
    # THEN keeping them saves gathers, and costs memory
    assert gathers[1] < gathers[0]
    assert passes_peak(kept) > passes_peak(again)


def seconds(trace):
    work = [op.moved_bytes * 1e-9 if op.lane is Lane.COMM else op.flops * 1e-11 for op in trace.ops]
    return simulate(trace.ops, work, [0.0] * len(work)).seconds


def test_pieces_run_beside_each_other_and_do_the_same_work():
    # GIVEN gathers before products and scatters after them  WHEN each goes in as many pieces as ranks
    options = {"sequence_parallel": True, "keep_gathered": True}
    whole, pieces = split(gpt(3, **LLAMA), 2, **options), split(gpt(3, **LLAMA), 2, **options, async_tp=True)

    def sent(trace):  # of two ranks' tensor half is there already
        return sum(op.moved_bytes * (1 if ".send." in op.name else 0.5) for op in trace.ops if op.lane is Lane.COMM)

    # THEN the same bytes are sent and the same products made, and memory is as it was
    assert sent(pieces) == sent(whole)
    assert any(".send." in op.name for op in pieces.ops)
    assert sum(op.flops for op in pieces.ops) == sum(op.flops for op in whole.ops)
    assert passes_peak(pieces) == passes_peak(whole)
    # AND it takes less time where what is sent takes long
    assert seconds(pieces) < seconds(whole)


def test_pieces_need_a_split_sequence():
    with pytest.raises(UsageError, match=r"tensor\.sequence_parallel is off"):
        check(Plan(mesh=Mesh(tp=2), tensor=Tensor(async_tp=True)))
