"""Unlike GPUs: what each kind does, the rank that has least room, and what a kind alone would cost."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.estimate import estimate
from dnnmem.estimator.mixed import balanced_shares, estimate_mixed
from dnnmem.estimator.mixed_cluster import find_parts
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from tests.estimator.passes.steps import gpt

STAGES = ("mesh.pp=2", "batch.accumulation=4")
REPLICAS = ("mesh.dp_replicate=4", "sharding.strategy=ddp", "batch.accumulation=6")


def heavy(blocks):
    """A step whose time is that of arithmetic, not of the host."""
    trace = gpt(blocks)
    ops = (replace(op, flops=50_000 * op.flops) for op in trace.ops)
    return replace(trace, ops=tuple(ops))


def priced(name, *settings, blocks=6):
    return estimate_mixed(heavy(blocks), change(Plan(), settings), find_parts(name)).found


@pytest.mark.parametrize("settings", [STAGES, REPLICAS], ids=["stages", "replicas"])
def test_equal_gpus_on_both_sides_cost_what_one_cluster_of_them_does(settings):
    # GIVEN two kinds that are the same  WHEN a plan is priced  THEN step and bytes are those of equal GPUs
    half = change(Plan(), settings).mesh.world_size // 2
    mixed = priced(f"h100:{half}+h100:{half}", *settings, "pipeline.cuts=3" if settings is STAGES else "mesh.tp=1")
    plain = estimate(heavy(6), change(Plan(), settings), find_cluster(f"h100:{2 * half}"))
    assert mixed.peak_reserved_bytes == plain.peak_reserved_bytes
    assert mixed.samples == plain.samples
    assert mixed.step_seconds >= plain.step_seconds  # a network is between them, where there were links


def test_the_slower_kind_has_fewer_blocks():
    # GIVEN an A100 before an H100, and after it  WHEN cuts are left to the balance
    first, last = (priced(name, *STAGES, blocks=8) for name in ("a100-80gb:1+h100:1", "h100:1+a100-80gb:1"))
    # THEN the slower one has the shorter run, and both are told of
    assert int(first.plan.pipeline.cuts) < int(last.plan.pipeline.cuts)
    assert any("Stage 0 on a100" in note for note in first.notes)
    assert any("it has least room" in note for note in first.notes)


def test_the_kind_with_least_room_is_told_and_decides():
    # GIVEN a kind of 40 GB beside one of 80 GB that takes as much  THEN bytes left are told of the smaller
    found = priced("h100:2+a100-40gb:2", *REPLICAS)
    assert found.cluster.device.name == "a100-sxm-40gb"
    assert found.fits


def test_quicker_replicas_take_more_micro_batches():
    found = priced("h100:2+a100-80gb:2", *REPLICAS)
    shares = [int(note.split(": ")[1].split()[0]) for note in found.notes if "micro-batches a rank" in note]
    assert sum(shares) * 2 == 4 * 6
    assert shares[0] > shares[1]
    assert found.samples == estimate(heavy(6), change(Plan(), REPLICAS), find_cluster("h100:4")).samples


def test_ranks_that_gather_parameters_take_as_many_as_each_other():
    found = priced("h100:2+a100-80gb:2", "mesh.dp_shard=4", "sharding.strategy=zero3", "batch.accumulation=6")
    assert sum("6 micro-batches a rank" in note for note in found.notes) == 2


@pytest.mark.parametrize("counts", [(1, 1), (2, 3), (4, 2)])
def test_shares_are_the_best_of_all(counts):
    paces, total = ((3.0, 2.0), (1.5, 1.0)), sum(counts) * 5
    every = [m for m in itertools.product(range(1, 40), repeat=2) if counts[0] * m[0] + counts[1] * m[1] == total]
    best = min(max(f + (k - 1) * n for k, (f, n) in zip(m, paces, strict=True)) for m in every)
    found = balanced_shares(counts, paces, total)
    assert found in every
    assert max(f + (k - 1) * n for k, (f, n) in zip(found, paces, strict=True)) == best


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("h100:3+a100-80gb:1", ("mesh.pp=2", "mesh.tp=2"), "3 % 2 = 1"),
        ("h100:2+a100-80gb:2", STAGES, "has 4 GPUs"),
        ("h100:1+a100-80gb:1", ("mesh.pp=1",), "wait for the slowest"),
        ("h100:2+a100-80gb:2", ("mesh.tp=2",), "wait for the slowest"),
        ("h100:2+", STAGES, "on one side of"),
    ],
)
def test_ranks_must_fill_the_kinds(name, settings, said):
    with pytest.raises(UsageError, match=said):
        priced(name, *settings)


def test_where_gpus_are_equal_unlike_ones_are_an_error_with_a_way_out():
    with pytest.raises(UsageError, match="unlike GPUs"):
        find_cluster("h100:4+a100-80gb:4")
