"""Context parallelism splits work and activations along the sequence, and sends what attention needs of other ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.estimate import estimate
from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.local_step import local_step, step_of
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.context import apply, split_storages
from dnnmem.estimator.passes.context_ring import ROUNDS, Sizes, ring_backward
from dnnmem.estimator.plan import Context, Mesh, Plan, check
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import replay_on
from dnnmem.estimator.simulate import simulate
from dnnmem.estimator.stage_memory import stage_peak
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Event, Kind, Lane, Phase
from dnnmem.estimator.work import DTYPES
from tests.estimator.passes.steps import LLAMA, WRITTEN, gpt, passes_peak, plain

BF16 = {**LLAMA, "dtype": "bfloat16"}
MODELS = pytest.mark.parametrize("arguments", [{}, LLAMA, BF16], ids=["gpt", "llama", "bfloat16"])
METHODS = pytest.mark.parametrize("method", ["all_gather", "ring", "ulysses"])
QUERY = 2 * 32 * 64 * 4
"""Bytes of q, k or v: batch, tokens, width, float32."""


@cache
def _sequences(layers, arguments):
    trace = gpt(layers, **dict(arguments))
    return replace(trace, batch={**trace.batch, "seq_len": 32})


def sequences(layers, **arguments):
    """The sample GPT, which knows how long its sequences are."""
    return _sequences(layers, tuple(sorted(arguments.items())))


def shared(trace, cp=2, method="ring"):
    found = apply(trace, Plan(mesh=Mesh(cp=cp), context=Context(method=method)))
    found.check()
    return found


def sent(trace, phase):
    found = Counter()
    for op in trace.ops:
        if op.lane is Lane.COMM and op.phase is phase:
            found[op.name.split(".")[1]] += op.moved_bytes
    return dict(found)


@MODELS
@METHODS
def test_activations_are_divided_and_parameters_are_not(arguments, method):
    # GIVEN a language model of 3 blocks  WHEN four ranks share its sequences
    trace = sequences(3, **arguments)
    found = shared(trace, 4, method)
    # THEN what it keeps for the backward pass is a quarter, but for masks and tables of positions; parameters are whole
    for i, storage in trace.storages.items():
        if storage.kind in {Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER, Kind.BUFFER}:
            assert found.storages[i].nbytes == storage.nbytes
        elif storage.saved and 32 in storage.shape[:2] and i in {r for op in trace.ops for r in op.reads}:
            assert found.storages[i].nbytes * 4 == storage.nbytes
    # AND so is its work
    compute = sum(op.flops for op in found.ops)
    assert compute * 4 == pytest.approx(sum(op.flops for op in trace.ops), rel=1e-3)


@MODELS
def test_gradients_of_matrices_are_no_activations(arguments):
    # GIVEN 3 samples, so that no activation has the shape of a matrix
    trace = sequences(3, **arguments, batch=3)
    split = split_storages(trace, 32)
    shapes = {s.shape for s in trace.storages.values() if s.kind is Kind.PARAM} - {(32, 64)}  # that of positions
    assert split
    assert not [i for i in split if trace.storages[i].shape in shapes]


def test_ranks_send_what_the_papers_say():
    # GIVEN attention over 4 ranks, in 3 blocks; a rank's q, k or v is a quarter
    part, ranks = QUERY // 4, 4
    # THEN a ring passes keys and values on 3 times, or gathers all 4 at once
    assert sent(shared(sequences(3), ranks, "ring"), Phase.FORWARD) == {"send": 3 * (ranks - 1) * 2 * part}
    assert sent(shared(sequences(3), ranks, "all_gather"), Phase.FORWARD) == {"all_gather": 3 * ranks * 2 * part}
    # AND their gradients go around all 4 ranks, keys and values besides
    backward = sent(shared(sequences(3), ranks, "ring"), Phase.BACKWARD)
    assert backward == {"send": 3 * (ranks - 1 + ranks) * 2 * part}
    # AND Ulysses swaps q, k, v and out, and their gradients
    swaps = {"all_to_all": 3 * 4 * part}
    ulysses = shared(sequences(3), ranks, "ulysses")
    assert (sent(ulysses, Phase.FORWARD), sent(ulysses, Phase.BACKWARD)) == (swaps, swaps)


def test_many_rounds_are_written_as_few():
    # GIVEN 16 ranks  THEN the ring has ROUNDS pieces of attention, which do all of its work
    trace = sequences(2)
    found = shared(trace, 16, "ring")
    pieces = [op for op in found.ops if op.phase is Phase.FORWARD and "_attention." in op.name]
    assert len(pieces) == 2 * ROUNDS
    whole = sum(op.flops for op in trace.ops if op.phase is Phase.FORWARD and "_attention." in op.name)
    assert sum(op.flops for op in pieces) * 16 == whole
    # AND what is sent is no less than all rounds
    assert sent(found, Phase.FORWARD)["send"] >= 2 * 15 * 2 * QUERY // 16


@MODELS
@METHODS
def test_twice_the_ranks_never_need_more(arguments, method):
    trace = sequences(3, **arguments)
    peaks = [passes_peak(trace), *(passes_peak(shared(trace, cp, method)) for cp in (2, 4))]
    assert peaks == sorted(peaks, reverse=True)


@METHODS
@pytest.mark.parametrize(
    "settings",
    [
        ("remat.policy=full",), ("remat.policy=every", "remat.every=2"), ("mesh.pp=2", "batch.accumulation=4"),
        ("mesh.tp=2",), ("mesh.tp=2", "tensor.sequence_parallel=true"), ("precision.compute=bf16_amp",),
        ("mesh.dp_shard=2", "sharding.strategy=zero3", "remat.policy=full"), ("loss.chunks=4",),
        ("mesh.dp_shard=4", "sharding.strategy=zero1"), ("mesh.dp_replicate=2", "sharding.strategy=ddp"),
        ("offload.activations=all",), ("compression.bits=8",), ("optimizer.kernel=fused",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_it_goes_with_everything_else(method, settings):
    # GIVEN a plan with other techniques  THEN its chunks are steps that can follow themselves
    plan = change(Plan(), ["mesh.cp=2", f"context.method={method}", *settings])
    for chunk in rewrite(sequences(4, **LLAMA), plan):
        chunk.check()


@METHODS
def test_blocks_are_shared_alike(method):
    # GIVEN 3 recorded blocks of 5  THEN repeating them is sharing all 5
    plan = change(Plan(), ["mesh.cp=2", f"context.method={method}", "remat.policy=full"])
    [few], [all_of_them] = rewrite(sequences(3), plan, layers=5), rewrite(sequences(5), plan)
    assert plain(few)[1] == plain(all_of_them)[1]


def test_gradients_meet_over_data_and_context():
    # GIVEN 2 x 4 ranks  WHEN parameters are split  THEN they are over all 8, neighbours on a node
    step = local_step(
        sequences(3), change(Plan(), ["mesh.cp=4", "mesh.dp_shard=2", "sharding.strategy=zero3"]),
        find_cluster("h100-sxm-80gb:8"),
    )  # fmt: skip
    groups = {(m.axis, m.group.size) for m in step.chunks[0].messages}
    assert groups == {("dp_shard", 8), ("cp", 4)}
    # AND without a strategy they are summed over the 4 that share a sequence, once a step
    alone = local_step(sequences(3), change(Plan(), ["mesh.cp=4"]), find_cluster("h100-sxm-80gb:8")).chunks[0]
    assert {m.group.size for m in alone.messages if m.index in alone.sync} == {4}


@METHODS
def test_a_step_takes_as_long_as_its_lanes_allow(method):
    found = estimate(
        sequences(3), change(Plan(), ["mesh.cp=4", f"context.method={method}"]), find_cluster("h100-sxm-80gb:4")
    )  # fmt: skip
    assert found.step_seconds > 0
    ops = shared(sequences(3), 4, method).ops
    timing = simulate(ops, [1.0] * len(ops), [0.0] * len(ops))
    assert max(timing.busy.values()) <= timing.seconds <= sum(timing.busy.values())


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ({}, ("mesh.cp=3",), r"32 % \(2 \* cp\) = 2, but it must be 0, an early and a late part"),
        ({}, ("mesh.cp=8", "context.method=ulysses"), r"has 4 heads of queries on a rank; 4 % cp 8 = 4"),
        ({}, ("mesh.cp=4", "mesh.tp=2", "context.method=ulysses"), r"has 2 heads of queries on a rank; 2 % cp 4 = 2"),
        (WRITTEN, ("mesh.cp=2",), r"has no fused attention"),
    ],
)
def test_what_cannot_be_shared_is_one_error(arguments, settings, words):
    with pytest.raises(UnsupportedError, match=words):
        rewrite(sequences(2, **arguments), change(Plan(), settings))


def test_a_step_without_sequences_is_refused():
    trace = gpt(2)
    with pytest.raises(UnsupportedError, match="no sequences to share"):
        shared(trace)


def test_two_ways_to_split_sequences_do_not_meet():
    plan = change(Plan(), ["mesh.pp=2", "pipeline.schedule=terapipe"])
    with pytest.raises(UsageError, match="cp 2 ranks hold parts of it side by side"):
        check(replace(plan, mesh=replace(plan.mesh, cp=2)))
    with pytest.raises(UsageError, match=r"context\.method is 'star'; it is one of all_gather, ring, ulysses"):
        change(Plan(), ["context.method=star"])


@pytest.mark.parametrize("degrees", [{"cp": 4}, {"cp": 2, "tp": 2}, {"cp": 2, "pp": 2}], ids=str)
def test_memory_is_that_of_the_worst_rank_of_a_ring_and_says_which(degrees):
    # GIVEN a model whose ranks have other halves, and so other peaks
    trace, cluster = sequences(3, **LLAMA, batch=256, vocab=64), find_cluster("h100:8")
    plan = Plan(mesh=Mesh(**degrees), context=Context(method="ring"))
    # WHEN the plan is priced
    found = estimate(trace, plan, cluster)
    # THEN its bytes are the most that any rank reserves, and the rank is told; seconds are the slowest's
    mesh = plan.mesh
    each = mesh.world_size // mesh.pp
    peaks = {}
    for rank in range(each):
        chunks = rewrite(trace, plan, cluster, rank=rank)
        peaks |= {s * each + rank: stage_peak(chunks, plan, cluster.device, s) for s in range(mesh.pp)}
    if mesh.pp == 1:
        peaks = {r: replay_on(rewrite(trace, plan, cluster, rank=r)[0], cluster.device) for r in range(each)}
    worst = max(peaks, key=lambda r: (peaks[r].peak_reserved_bytes, peaks[r].peak_allocated_bytes))
    assert (found.peak_reserved_bytes, found.peak_allocated_bytes) == (
        peaks[worst].peak_reserved_bytes,
        peaks[worst].peak_allocated_bytes,
    )
    assert any(f"of rank {worst}, which" in note for note in found.notes)
    model = load(cluster.device)
    for rank in range(each):
        step = step_of(rewrite(trace, plan, cluster, rank=rank), trace, plan, cluster, 1)
        assert time_step(step, model).seconds <= found.step_seconds * (1 + 1e-9)


@METHODS
def test_attention_is_timed_in_the_type_that_it_multiplies(method):
    # GIVEN attention in half precision, of which kernels also make a logsumexp in float32
    trace, cluster = sequences(3, **BF16), find_cluster("h100:2")
    # WHEN two ranks share it
    step = local_step(trace, Plan(mesh=Mesh(cp=2), context=Context(method=method)), cluster)
    # THEN each of its pieces runs at the rate of half precision
    kinds = [
        DTYPES[i] for i, op in zip(step.chunks[0].work.dtype, step.local.ops, strict=True) if is_attention(op.name)
    ]
    assert set(kinds) == {"bfloat16"}


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_what_a_round_read_goes_when_the_next_one_has_its_logsumexp(rank):
    # GIVEN the backward pass of a ring of four, whose loop binds all that a kernel reads at once
    size = 4096
    sizes = Sizes(
        query=size, out=size, key=size, value=size, logsumexp=256, wide=2, ranks=4, rank=rank, gathers=False,
        causal=True,
    )  # fmt: skip
    tape, _ = ring_backward(sizes, [Event(size, 0, i) for i in range(3)], range(3))
    # WHEN rounds of half of the queries are looked at
    rounds = [piece.events for piece in tape.pieces if piece.kind == "attention"]
    late = [events for i, events in enumerate(rounds) if i > rank]
    # THEN each makes its part of the logsumexp first, and lets go of what the last one read after that
    assert [events[0].nbytes for events in late] == [128] * (3 - rank)
    assert all(events[0].nbytes > 0 for events in rounds[:1])
    for events in rounds[2:]:
        assert -2 * size in [nbytes for nbytes, _, _ in events[:3]]
