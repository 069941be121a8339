"""Data parallelism: bytes that ranks hold and send, and lifetimes of what is gathered, as FSDP2 and DDP have them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dnnmem.estimator.passes import precision, remat, rewrite, sharding
from dnnmem.estimator.passes.draft import UNPADDED, Draft
from dnnmem.estimator.passes.fsdp_groups import find_groups
from dnnmem.estimator.passes.fsdp_parts import SCATTER_STREAM
from dnnmem.estimator.plan import Mesh, Plan, Precision, Remat, Sharding
from dnnmem.estimator.trace import Kind, Lane, Phase
from tests.estimator.passes.steps import LLAMA, gpt, passes_peak

BF16 = {**LLAMA, "dtype": "bfloat16"}
BESIDE = {"tokens", "positions", "blocks"}
"""Modules of the sample with parameters, but for the norm behind the blocks."""


def sharded(trace, strategy, ranks=4, *, replicas=1, precision=None, policy="none", **options):
    mesh = Mesh(dp_replicate=ranks) if strategy == "ddp" else Mesh(dp_shard=ranks, dp_replicate=replicas)
    plan = Plan(
        mesh=mesh, precision=precision or Precision(), remat=Remat(policy=policy),
        sharding=Sharding(strategy=strategy, **options),
    )  # fmt: skip
    found = sharding.apply(remat.apply(trace, plan), plan)
    found.check()
    return found


def owned(trace, *kinds):
    return sum(trace.storages[i].nbytes for i in trace.pinned if trace.storages[i].kind in kinds)


def sent(trace, kind):
    """Bytes of collectives of a kind, forward, backward and step."""
    found = Counter()
    for op in trace.ops:
        if op.lane is Lane.COMM and op.name.startswith(f"dnnmem.{kind}."):
            found[op.phase.value] += op.moved_bytes
    return dict(found)


PARAMS = (Kind.PARAM,)
STATES = (Kind.OPTIMIZER,)


@pytest.mark.parametrize("arguments", [{}, BF16], ids=["gpt", "llama"])
def test_zero_stages_hold_what_their_paper_says(arguments):
    trace = gpt(4, **arguments)
    params, states = owned(trace, *PARAMS), owned(trace, *STATES)
    for strategy, split in (("zero1", STATES), ("zero2", STATES), ("zero3", (*PARAMS, *STATES))):
        found = sharded(trace, strategy, even_parts=True)
        for kind, whole in ((PARAMS, params), (STATES, states)):
            assert owned(found, *kind) * (4 if kind[0] in split else 1) == pytest.approx(whole, rel=0.02)


def test_ranks_together_hold_all_and_padding():
    # GIVEN parameters of rows that 5 does not divide
    trace = gpt(3)
    found = sharded(trace, "zero3", 5)
    for i, storage in trace.storages.items():
        if storage.kind is Kind.PARAM:
            rows = storage.shape[0]
            assert found.storages[i].nbytes * 5 == storage.nbytes // rows * (-(-rows // 5) * 5)


def test_states_have_no_padding_and_what_is_gathered_has():
    # GIVEN 7 ranks, which divide no parameter's rows  WHEN each rank is rewritten
    trace, plan = gpt(3), Plan(mesh=Mesh(dp_shard=7), sharding=Sharding(strategy="zero3"))
    ranks = [sharding.apply(trace, plan, rank=rank) for rank in range(7)]
    for found in ranks:
        found.check()
    # THEN their states are all there are, once; parameters lie in equal parts
    counters = sum(s.nbytes for i, s in trace.storages.items() if s.kind is Kind.OPTIMIZER and s.nbytes <= 8)
    assert sum(owned(found, *STATES) - counters for found in ranks) == owned(trace, *STATES) - counters
    assert {owned(found, *PARAMS) for found in ranks} == {owned(ranks[0], *PARAMS)}
    assert owned(ranks[-1], *STATES) < owned(ranks[0], *STATES)
    # AND the last rank's are there without their padding first, which other passes leave so
    small = [s.nbytes for s in ranks[-1].storages.values() if s.name == UNPADDED]
    assert small
    assert not any(s.name == UNPADDED for s in ranks[0].storages.values())
    assert len(ranks[-1].setup) == len(ranks[0].setup) + 2 * sum(nbytes > 0 for nbytes in small)
    assert Draft(ranks[-1]).finish().setup == ranks[-1].setup


def test_fsdp_gathers_twice_but_for_the_last_block_and_the_root():
    # GIVEN 4 blocks, whose parameters are gathered before each pass
    trace = gpt(4)
    params = owned(trace, *PARAMS)
    block = sum(trace.storages[i].nbytes for i in trace.pinned if trace.storages[i].module[:2] == ("blocks", "0")
                and trace.storages[i].kind is Kind.PARAM)  # fmt: skip
    found = sharded(trace, "zero3")
    assert sent(found, "all_gather") == {"forward": params, "backward": 3 * block}
    assert sent(found, "reduce_scatter") == {"backward": params}
    # AND the last too, or none, as asked
    assert sent(sharded(trace, "zero3", keep_last=False), "all_gather")["backward"] == 4 * block
    assert "backward" not in sent(sharded(trace, "zero3", reshard_after_forward=False), "all_gather")


def test_a_gather_is_issued_one_block_ahead():
    found = sharded(gpt(4), "zero3")
    gathers = [k for k, op in enumerate(found.ops) if op.name == "dnnmem.all_gather.dp_shard"]
    for k in gathers[2:]:
        reader = next(j for j in range(k, len(found.ops)) if found.ops[k].writes[0] in found.ops[j].reads)
        between = {
            op.module[:2] for op in found.ops[k:reader] if op.lane is Lane.COMPUTE and op.module[:1] == ("blocks",)
        }
        assert len(between - {found.ops[k].module[:2]}) == 1


def test_parameters_at_rest_and_on_the_wire_have_types_of_their_own():
    # GIVEN a step in bfloat16  WHEN parameters rest in float32, and gradients are summed in float32
    trace = gpt(4, **BF16)
    found = sharded(trace, "zero3", precision=Precision(param="float32", reduce="float32"))
    # THEN parts are twice as large, gathers are not, and scatters are
    assert owned(found, *PARAMS, *STATES) * 4 == pytest.approx(2 * owned(trace, *PARAMS, *STATES), rel=0.02)
    assert sent(found, "all_gather")["forward"] == owned(trace, *PARAMS)
    assert sent(found, "reduce_scatter")["backward"] == 2 * owned(trace, *PARAMS)


def test_replicas_sum_their_parts():
    found = sharded(gpt(4), "zero3", replicas=2)
    assert sent(found, "all_reduce") == {"backward": owned(gpt(4), *PARAMS) // 4}


def test_recomputation_gathers_once_a_pass():
    # GIVEN blocks that run again in the backward pass
    plain, again = (sent(sharded(gpt(4), "zero3", policy=policy), "all_gather") for policy in ("none", "full"))
    # THEN what they need is there already
    assert plain == again


def test_ddp_sums_all_gradients_in_buckets_that_stay():
    trace = gpt(4, width=256, vocab=320)
    found = sharded(trace, "ddp", bucket_mib=2)
    params = owned(trace, *PARAMS)
    assert sent(found, "all_reduce") == {"backward": params}
    assert owned(found, Kind.COMM) == params
    sums = [op for op in found.ops if op.lane is Lane.COMM]
    assert len(sums) > 3
    # AND one sum after the backward pass without overlap, in place
    exposed = sharded(trace, "ddp", overlap=False)
    assert [op.phase for op in exposed.ops if op.lane is Lane.COMM] == [Phase.BACKWARD]
    assert exposed.peak_bytes() == trace.peak_bytes()


def test_zero_without_parameters_sharded_gathers_them_after_the_update():
    for strategy in ("zero1", "zero2"):
        found = sharded(gpt(4), strategy, even_parts=True)
        assert sent(found, "all_gather") == {"step": owned(gpt(4), *PARAMS)}
        assert found.ops[-1].name == "dnnmem.all_gather.dp_shard"


def test_ranks_of_zero1_hold_all_states_once():
    # GIVEN a step  WHEN each of 4 ranks has its part of it
    trace = gpt(3)
    plan = Plan(mesh=Mesh(dp_shard=4), sharding=Sharding(strategy="zero1"))
    ranks = [rewrite(trace, plan, rank=rank)[0] for rank in range(4)]
    # THEN states are shared out, none twice, and not evenly: the largest matrix is one rank's
    held = [owned(rank, *STATES) for rank in ranks]
    assert sum(held) == owned(trace, *STATES)
    assert len(set(held)) > 1


def test_zero1_gives_each_parameter_to_one_rank_and_sends_them_all_after_the_update():
    trace = gpt(4)
    found = sharded(trace, "zero1", 4)
    whole = owned(trace, *PARAMS)
    # THEN rank 0 has the states of some, a fourth but for the largest of them
    most = max(trace.storages[i].nbytes for i in trace.pinned if trace.storages[i].kind is Kind.PARAM)
    assert abs(owned(found, *STATES) - 2 * whole // 4) <= 2 * most
    assert sent(found, "broadcast") == {"step": whole}
    assert sent(found, "all_reduce") == {"backward": whole}


def test_ddp_begins_with_one_bucket_and_makes_others_in_the_second_step():
    # GIVEN gradients of some MiB, sent in buckets of 2 MiB
    trace = gpt(4, width=256, vocab=320)
    found = sharded(trace, "ddp", bucket_mib=2)
    # THEN the set-up has one for all, which the step does not know
    begins = Counter(e.storage for e in found.setup if e.nbytes > 0)
    first = [found.storages[i] for i in begins if found.storages[i].name == "first bucket"]
    assert [s.nbytes for s in first] == [owned(trace, *PARAMS)]
    assert first[0].id not in found.pinned
    assert not any(found.storages[i].name == "bucket" for i in begins)
    # AND a pass that follows keeps it so
    again = Draft(found).finish()
    assert again.setup == found.setup


def test_zero2_gathers_once_and_drops_after_the_backward_pass():
    kept = sharded(gpt(4), "zero3", reshard_after_forward=False)
    assert sharded(gpt(4), "zero2") == kept


def test_one_rank_changes_nothing():
    assert sharding.apply(gpt(3), Plan(sharding=Sharding(strategy="zero3"))) is gpt(3)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_more_ranks_never_need_more(strategy):
    peaks = [sharded(gpt(4, batch=16), strategy, ranks).peak_bytes() for ranks in (2, 4, 8, 16)]
    assert peaks == sorted(peaks, reverse=True)
    even = sharded(gpt(4, batch=16), "zero2", 8, bucket_mib=1, even_parts=True)
    assert passes_peak(even) <= passes_peak(gpt(4, batch=16))


def test_a_split_root_gathers_embedding_and_head_by_themselves():
    # GIVEN a table before the blocks, and a norm and a head behind them
    trace = gpt(4, **BF16)
    found = sharded(trace, "zero3", split_root=True)
    sizes = [op.moved_bytes for op in found.ops if op.name == "dnnmem.all_gather.dp_shard"]
    table = next(s.nbytes for s in trace.storages.values() if s.kind is Kind.PARAM and s.module == ("tokens",))
    # THEN the table is gathered in both passes, and what comes last only once
    assert sizes[0] == table
    assert sizes[-1] == table
    assert sent(found, "all_gather")["backward"] == sent(found, "all_gather")["forward"] - sizes[5]
    # AND less is alive than where both stay until the end
    assert passes_peak(found) < passes_peak(sharded(trace, "zero3"))


def test_gradients_of_what_is_given_numbers_alone_are_sent_after_the_roots():
    # GIVEN a table that is the head too, so the root's, and one of positions as a group before the blocks
    trace = gpt(4)
    found = sharded(trace, "zero3", split_root=True)
    reduced = [op for op in found.ops if op.name == "dnnmem.reduce_scatter.dp_shard"]
    sizes = {s.module: s.nbytes for s in trace.storages.values() if s.kind is Kind.PARAM}
    # THEN positions, which no gradient passes through, go last: no hook tells that they are done
    assert [op.moved_bytes for op in reduced[-2:]] == [sizes["tokens",], sizes["positions",]]
    # AND the norm behind the blocks goes first, when it is done
    assert reduced[0].moved_bytes < min(op.moved_bytes for op in reduced[1:-1])


def test_sides_of_a_split_root_are_those_of_definition():
    # GIVEN a model whose last norm is defined before its blocks, as OPT's  WHEN what is beside them is split off
    trace = gpt(4)
    norm = next(s.module for s in trace.storages.values() if s.kind is Kind.PARAM and s.module[0] not in BESIDE)
    moved = sorted(trace.modules, key=lambda module: module.path != norm)
    groups = find_groups(replace(trace, modules=tuple(moved)), split_root=True)
    # THEN the norm and the positions are one group
    beside = [{trace.storages[i].module for i in group.params} for group in groups if group.path[0] != "blocks"]
    assert {("positions",), norm} in beside


def test_gradients_at_rest_come_from_the_pool_of_their_sums_one_storage_a_group():
    found = sharded(gpt(4, **BF16), "zero3")
    grads = {i for i, s in found.storages.items() if s.kind is Kind.GRAD}
    made = [e for op in found.ops for e in op.events if e.storage in grads and e.stream == SCATTER_STREAM]
    made = [e for e in made if e.nbytes > 0]
    assert len(made) == 5  # four blocks and the root
    assert sum(e.nbytes for e in made) * 4 == owned(gpt(4, **BF16), *PARAMS)


def test_gathers_further_ahead_hold_more_and_send_the_same():
    found = [sharded(gpt(6), "zero3", prefetch=ahead) for ahead in (0, 1, 3)]
    assert sent(found[0], "all_gather") == sent(found[1], "all_gather") == sent(found[2], "all_gather")
    held = [one.peak_bytes() for one in found]
    assert held[0] <= held[1] <= held[2]
    # AND what is gathered first waits for no block before it
    assert [op.name for op in found[2].ops[:6]].count("dnnmem.all_gather.dp_shard") >= 3


def test_gradients_in_buckets_are_there_once():
    # GIVEN a step whose gradients live beside their buckets  THEN views of buckets spare all of them at the update
    beside, inside = (sharded(gpt(4), "ddp", bucket_views=on) for on in (False, True))

    def held(one):
        update = next(k for k, op in enumerate(one.ops) if op.phase is Phase.STEP)
        return one.pinned_bytes() + sum(e.nbytes for op in one.ops[:update] for e in op.events)

    grads = sum(s.nbytes for s in gpt(4).storages.values() if s.kind is Kind.PARAM)
    assert held(beside) - held(inside) == pytest.approx(grads, rel=0.01)


def test_the_sum_of_a_tied_matrix_is_sent_under_autocast_too():
    # GIVEN embedding and head that share a matrix, whose gradient autograd adds up  THEN all of it goes into buckets
    trace = precision.apply(gpt(4, tied=True), Plan(precision=Precision(compute="bf16_amp")))
    found = sharding.apply(trace, Plan(mesh=Mesh(dp_replicate=2), sharding=Sharding(strategy="ddp")))
    grads = sum(s.nbytes for s in trace.storages.values() if s.kind is Kind.PARAM)
    assert sum(sent(found, "all_reduce").values()) == grads
