"""Chunks of a pipeline: together they do the step's work, hold its parameters, and hand on the stream."""

from __future__ import annotations

import pytest

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.pipeline import split, split_repeated
from dnnmem.estimator.passes.pipeline_buffers import SEND
from dnnmem.estimator.plan import Batch, Mesh, Pipeline, Plan, Remat, Sharding
from dnnmem.estimator.repeat import repeat
from dnnmem.estimator.trace import Kind, Lane, Phase
from tests.estimator.passes.steps import LLAMA, WRITTEN, gpt, passes_peak

STREAM = 2 * 32 * 64 * 4
MODELS = pytest.mark.parametrize("arguments", [{}, LLAMA, WRITTEN], ids=["gpt", "llama", "written scores"])


def chunks(trace, pp, chunks=1):
    schedule = "interleaved" if chunks > 1 else "1f1b"
    found = split(trace, Plan(mesh=Mesh(pp=pp), pipeline=Pipeline(chunks=chunks, schedule=schedule)))
    for chunk in found:
        chunk.check()
    return found


def owned(trace, kind):
    return {(s.module, s.name): s.nbytes for i in trace.pinned if (s := trace.storages[i]).kind is kind}


def sends(trace):
    return [(op.phase.value, op.moved_bytes) for op in trace.ops if op.name == SEND]


@MODELS
@pytest.mark.parametrize(("pp", "per_rank"), [(2, 1), (4, 1), (2, 2)])
def test_chunks_do_the_work_of_the_step(arguments, pp, per_rank):
    # GIVEN four blocks
    trace = gpt(4, **arguments)
    found = chunks(trace, pp, per_rank)
    # THEN each product happens in one chunk
    assert sum(op.flops for chunk in found for op in chunk.ops) == sum(op.flops for op in trace.ops)
    # AND parameters and states are dealt out; a tied embedding is in the first and the last
    for kind in (Kind.PARAM, Kind.OPTIMIZER):
        parts = [owned(chunk, kind) for chunk in found]
        assert {key: value for part in parts for key, value in part.items()} == owned(trace, kind)
        twice = {key for a, part in enumerate(parts) for key in part for other in parts[a + 1 :] if key in other}
        assert twice == (set() if arguments is LLAMA else {key for key in owned(trace, kind) if key[0] == ("tokens",)})


def test_chunks_send_the_stream_on_and_its_gradient_back():
    first, middle, last = (chunks(gpt(4, **LLAMA), 4)[c] for c in (0, 1, 3))
    assert sends(first) == [("forward", STREAM)]
    assert sends(middle) == [("forward", STREAM), ("backward", STREAM)]
    assert sends(last) == [("backward", STREAM)]
    # AND what is received is an input, made in the pass that needs it
    received = [s for s in middle.storages.values() if s.kind is Kind.INPUT and s.nbytes == STREAM]
    assert len(received) == 2


def test_a_tied_embedding_is_summed_once_a_step():
    first, _, _, last = chunks(gpt(4), 4)
    table = 320 * 64 * 4
    for chunk in (first, last):
        assert ("step", table) in sends(chunk)
        grads = [s for s in chunk.storages.values() if s.kind is Kind.GRAD and s.nbytes == table]
        assert len(grads) == 1


def test_a_tied_embedding_is_the_heads_in_the_last_chunk():
    # GIVEN a table that comes first in the model, and that its last stage knows as the head's
    last = chunks(gpt(4), 4)[3]
    table = [i for i, s in last.storages.items() if s.module == ("tokens",) and s.kind is not Kind.TEMP]
    # THEN it follows the norm before the head: in memory, and in every list of the update
    for order in (last.storages, [e.storage for e in last.setup if e.storage >= 0]):
        assert [i for i in order if last.storages[i].kind is Kind.PARAM][-1] in table
    lists = [op for op in last.ops if op.name.startswith("aten._foreach_") and {*op.reads} & {*table}]
    assert lists
    assert all(op.reads[len(op.writes) - 1] in table for op in lists)
    [roots] = [op for op in last.ops if op.name.startswith("aten._foreach_sqrt")]
    sizes = [e.nbytes for e in roots.events]
    assert max(sizes) == sizes[-1] == 320 * 64 * 4


def test_embeddings_are_first_and_the_loss_is_last():
    found = chunks(gpt(4), 2)
    modules = [{op.module for op in chunk.ops if op.phase is Phase.FORWARD} for chunk in found]
    assert ("tokens",) in modules[0]
    assert ("<loss>",) in modules[1]
    assert not {("head",), ("norm",), ("<loss>",)} & modules[0]
    assert {m[1] for m in modules[0] if m[:1] == ("blocks",)} == {"0", "1"}


def test_a_chunk_takes_the_passes_that_follow():
    # GIVEN recomputation, accumulation and sharding besides
    trace = gpt(4, batch=16)
    plan = Plan(
        mesh=Mesh(pp=2, dp_shard=2), batch=Batch(accumulation=4), remat=Remat(policy="full"),
        sharding=Sharding(strategy="zero3"),
    )  # fmt: skip
    found = rewrite(trace, plan)
    for chunk in found:
        chunk.check()
        assert any(op.name == "dnnmem.all_gather.dp_shard" for op in chunk.ops)
        assert passes_peak(chunk) < passes_peak(trace)
    assert len(found) == 2
    assert all(op.lane is not Lane.COMM for op in rewrite(trace, Plan())[0].ops)


def test_too_few_blocks_are_refused():
    with pytest.raises(UnsupportedError, match=r"pp 8 \* chunks 1 = 8 chunks, but the model has 4"):
        chunks(gpt(4), 8)


@pytest.mark.parametrize(
    ("pp", "per_rank", "layers"),
    [(4, 1, 9), (4, 1, 12), (2, 3, 8), (4, 2, 15)],
    ids=["9", "12", "2x3 of 8", "4x2 of 15"],
)
def test_chunks_of_as_many_blocks_are_one_trace(pp, per_rank, layers):
    # GIVEN three blocks that stand for more, dealt unevenly or evenly
    trace, schedule = gpt(3, **LLAMA), "interleaved" if per_rank > 1 else "1f1b"
    plan = Plan(mesh=Mesh(pp=pp), pipeline=Pipeline(chunks=per_rank, schedule=schedule))
    # WHEN their chunks are made of few blocks, and of all
    found, all_ = split_repeated(trace, plan, layers), split(repeat(trace, layers), plan)
    # THEN they do the same, those between the first and the last that have as many blocks being one trace
    assert [_doings(chunk) for chunk in found] == [_doings(chunk) for chunk in all_]
    middle = {len(chunk.ops) for chunk in all_[1:-1]}
    assert len({id(chunk) for chunk in found[1:-1]}) == len(middle)


def _doings(chunk):
    events = [(op.name, op.phase, op.moved_bytes, [(e.nbytes, e.stream) for e in op.events]) for op in chunk.ops]
    return events, chunk.pinned_bytes(), chunk.peak_bytes()
