"""One rank's part of a layer of experts: rows, bytes that travel, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.passes import PASSES, rewrite
from dnnmem.estimator.passes.expert_layers import SENT
from dnnmem.estimator.plan import Experts, Mesh, Plan, Precision, Sharding, Tensor
from dnnmem.estimator.trace import Kind, Lane, Phase
from tests.estimator.passes.expert_steps import EXPERTS, ROWS, WIDTH, mixture

ZERO3 = Sharding(strategy="zero3")


def planned(ranks=4, ep=2, **others):
    return Plan(mesh=Mesh(dp_shard=ranks, ep=ep), sharding=ZERO3, **others)


def experts_of(plan):
    found = PASSES["experts"](mixture(), plan, None)
    found.check()
    return found


def test_one_rank_and_no_experts_leave_a_step_alone():
    step = mixture()
    assert PASSES["experts"](step, Plan(mesh=Mesh(dp_shard=4), sharding=ZERO3), None) is step


@pytest.mark.parametrize("ep", [2, 4])
def test_a_rank_holds_its_share_of_the_experts(ep):
    step, found = mixture(), experts_of(planned(ep=ep))
    for i in step.pinned:
        whole, part = step.storages[i], found.storages[i]
        held = whole.module[-1:] == ("experts",)
        # THEN parameters and states of experts are divided, others are not
        assert part.nbytes * (ep if held else 1) == whole.nbytes
        assert not held or part.shape[0] * ep == EXPERTS


@pytest.mark.parametrize("imbalance", [1.0, 1.5])
def test_rows_go_and_come_four_times_and_their_counts_once(imbalance):
    found = experts_of(planned(experts=Experts(imbalance=imbalance)))
    sent = [op for op in found.ops if op.name == SENT]
    # THEN tokens go and come in each pass; weights go, and their gradients come; counts go once
    rows = round(ROWS * imbalance)
    assert [(op.phase, op.moved_bytes) for op in sent] == [
        (Phase.FORWARD, 8 * EXPERTS),
        (Phase.FORWARD, rows * WIDTH * 4),
        (Phase.FORWARD, rows * 4),
        (Phase.FORWARD, rows * WIDTH * 4),
        (Phase.BACKWARD, rows * WIDTH * 4),
        (Phase.BACKWARD, rows * 4),
        (Phase.BACKWARD, rows * WIDTH * 4),
    ]
    assert all(op.lane is Lane.COMM for op in sent)
    # AND the work of the products follows the rows
    flops, before = (sum(op.flops for op in step.ops if "grouped_mm" in op.name) for step in (found, mixture()))
    assert flops == round(imbalance * before)


def test_a_capacity_makes_rows_fixed_and_no_rank_waits_for_counts():
    found = experts_of(planned(experts=Experts(capacity=2.0)))
    moved = [op.moved_bytes for op in found.ops if op.name == SENT]
    assert moved[0] == 2 * ROWS * WIDTH * 4
    assert len(moved) == 6


def test_a_loop_over_experts_is_as_many_products_and_as_much_work():
    whole, looped = (experts_of(planned(experts=Experts(grouped=grouped))) for grouped in (True, False))
    products = [op for op in looped.ops if op.name == "aten.mm.default" and op.module[-1:] == ("experts",)]
    assert len(products) == 6 * EXPERTS // 2
    assert sum(op.flops for op in products) == sum(op.flops for op in whole.ops if "grouped_mm" in op.name)
    assert looped.peak_bytes() == whole.peak_bytes()


def test_the_ranks_that_hold_the_same_experts_share_them():
    # GIVEN experts over 2 of 8 ranks
    [found] = rewrite(mixture(), planned(8, 2))
    found.check()
    # THEN parameters of experts are gathered by 4 ranks, others by 8
    gathered = {op.name for op in found.ops if "all_gather" in op.name}
    assert gathered == {"dnnmem.all_gather.dp_shard", "dnnmem.all_gather.dp_shard_mod_ep"}
    step = mixture()
    for i in step.pinned:
        if step.storages[i].kind is Kind.PARAM and step.storages[i].module[-1:] == ("experts",):
            assert found.storages[i].nbytes * 8 == step.storages[i].nbytes


def test_what_is_sent_takes_its_time():
    local = local_step(mixture(), planned(8, 2), find_cluster("h100:8"))
    axes = {(m.kind, m.axis, m.group.size) for chunk in local.chunks for m in chunk.messages}
    assert {("all_to_all", "ep", 2), ("all_gather", "dp_shard_mod_ep", 4), ("reduce_scatter", "dp_shard", 8)} <= axes


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(mesh=Mesh(dp_shard=16, ep=16), sharding=ZERO3), f"{EXPERTS} % ep 16 = {EXPERTS}, but it must be 0"),
        (Plan(mesh=Mesh(dp_shard=2, ep=2, tp=2), sharding=ZERO3, tensor=Tensor()), "ep 2 beside tp 2"),
    ],
)
def test_what_cannot_be_divided_is_refused(plan, words):
    with pytest.raises(UnsupportedError) as error:
        PASSES["experts"](mixture(), plan, None)
    assert words in error.value.message


def test_a_step_without_experts_is_refused():
    step = mixture()
    dense = replace(step, ops=tuple(op for op in step.ops if "grouped_mm" not in op.name))
    with pytest.raises(UnsupportedError) as error:
        PASSES["experts"](dense, planned(), None)
    assert "no grouped products" in error.value.message


def test_autocast_leaves_the_weights_of_experts_as_they_are():
    # GIVEN autocast, which knows no grouped products  WHEN a step in float32 is rewritten
    plan = planned(precision=Precision(compute="bf16_amp"))
    found = PASSES["precision"](mixture(), plan, None)
    # THEN no copies of weights are made for them, and ranks can share the experts
    read = [
        [found.storages[i].shape for i in op.reads if found.storages[i].kind is Kind.PARAM]
        for op in found.ops
        if op.name.startswith("aten._grouped_mm") and op.phase is Phase.FORWARD
    ]
    assert [len(shapes) for shapes in read] == [1, 1]
    for chunk in rewrite(mixture(), plan):
        chunk.check()
