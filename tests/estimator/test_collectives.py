from __future__ import annotations

from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.collectives import KINDS, Group, collective_seconds, group_of
from dnnmem.estimator.errors import InternalError, UsageError
from dnnmem.estimator.plan import Mesh
from dnnmem.estimator.time_model import load

NODE, FOUR = find_cluster("dgx-a100"), find_cluster("dgx-a100:4")
MODEL = replace(
    load(NODE.device),
    nvlink=0.5,
    nvlink_latency_seconds=1e-5,
    pcie=0.5,
    pcie_latency_seconds=2e-5,
    network=0.8,
    network_latency_seconds=4e-5,
)
BIG = 2**40


def _rate(kind: str, group: Group, cluster=FOUR) -> float:
    """Bytes a second of a message so large that nothing else counts."""
    return BIG / collective_seconds(kind, BIG, group, cluster, MODEL) / 1e9


@pytest.mark.parametrize(
    ("axis", "group"),
    [
        ("tp", (4, 4)),
        ("cp", (1, 1)),
        ("dp_shard", (2, 2)),
        ("dp_replicate", (2, 1)),
        ("dp", (4, 2)),
        ("pp", (2, 1)),
    ],
)
def test_neighbours_share_a_node(axis, group):
    # GIVEN ranks that count up in tp, cp, dp_shard, dp_replicate, pp  WHEN 4 tp * 2 dp_shard fill a node of 8
    mesh = Mesh(tp=4, dp_shard=2, dp_replicate=2, pp=2)
    # THEN those of tp and dp_shard are in one node, the others alone in theirs
    assert group_of(mesh, axis, FOUR) == group


def test_an_unknown_axis_is_refused():
    with pytest.raises(UsageError, match=r"'xp' is no axis of the mesh; it is one of tp, cp, "):
        group_of(Mesh(), "xp", NODE)


def test_ranks_that_share_experts_are_neighbours_and_those_that_hold_the_same_are_not():
    mesh = Mesh(dp_shard=8, ep=2)
    assert group_of(mesh, "ep", FOUR) == (2, 2)
    assert group_of(mesh, "dp_shard_mod_ep", FOUR) == (4, 4)
    assert group_of(Mesh(dp_shard=16, ep=8), "dp_shard_mod_ep", FOUR) == (2, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_and_no_bytes_take_no_time(kind):
    assert collective_seconds(kind, 2**20, Group(1, 1), NODE, MODEL) == 0
    assert collective_seconds(kind, 0, Group(8, 8), NODE, MODEL) == 0


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("all_gather", 150 * 8 / 7),
        ("reduce_scatter", 150 * 8 / 7),
        ("all_reduce", 75 * 8 / 7),
        ("broadcast", 150),
        ("all_to_all", 150 * 8 / 7 * 0.87),
        ("send", 150 * 0.70),
    ],
)
def test_large_messages_inside_a_node_reach_the_share_of_the_link(kind, rate):
    # GIVEN a link of 300 GB/s, half of which is reached
    assert _rate(kind, Group(8, 8)) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(("per_node", "rate"), [(1, 20), (2, 40), (4, 80), (8, 150)])
def test_a_group_has_the_cards_of_all_its_ranks_in_a_node(per_node, rate):
    # GIVEN 25 GB/s of network a GPU, 0.8 of which is reached  THEN k ranks have k times that, up to the GPUs' own link
    size = 4 * per_node
    assert _rate("all_gather", Group(size, per_node)) == pytest.approx(rate * size / (size - 1), rel=0.01)


def test_a_switch_that_adds_up_reduces_with_half_the_bytes():
    dgx_h100 = find_cluster("dgx-h100")
    plain = replace(dgx_h100, inside=replace(dgx_h100.inside, reduces=False))
    fast, slow = (collective_seconds("all_reduce", BIG, Group(8, 8), c, MODEL) for c in (dgx_h100, plain))
    assert fast / slow == pytest.approx((1 + 1 / 8) / (2 * 7 / 8), rel=0.01)


def test_a_tree_wins_where_hops_count():
    # GIVEN 64 nodes with a rank each  WHEN the message is small
    group, cluster = Group(64, 1), find_cluster("dgx-a100:64")
    small = collective_seconds("all_reduce", 1024, group, cluster, MODEL) - MODEL.network_latency_seconds
    # THEN there are 2 * log2(64) hops and not 2 * 63
    assert 12 * 5e-6 < small < 1.5 * 12 * 5e-6


def test_pcie_has_its_own_share_and_latency():
    box = find_cluster("8x4090")
    assert _rate("broadcast", Group(8, 8), box) == pytest.approx(31.5 / 2, rel=0.01)
    assert collective_seconds("broadcast", 1, Group(2, 2), box, MODEL) == pytest.approx(2e-5 + 1e-6, rel=0.01)


def test_a_group_over_nodes_needs_a_network():
    with pytest.raises(UsageError, match=r"a group of 16 ranks spans 2 nodes, but dgx-a100 has 8 GPUs in one node"):
        collective_seconds("all_reduce", 1, Group(16, 8), NODE, MODEL)


def test_an_unknown_kind_is_our_own_fault():
    with pytest.raises(InternalError, match=r"no collective is called 'gossip'"):
        collective_seconds("gossip", 1, Group(2, 2), NODE, MODEL)
