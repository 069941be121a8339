"""What goes over the wire, what waits beside the buckets, and what cannot be sent."""

from __future__ import annotations

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.gradient_sizes import GRADIENTS
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.update import gradients
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Lane, Phase
from tests.estimator.passes.steps import gpt

RANKS = 8
DDP = (f"mesh.dp_replicate={RANKS}", "sharding.strategy=ddp")
WAYS = ["float16", "bfloat16", "topk", "qsgd", "terngrad", "signsgd", "onebit", "powersgd"]


def planned(*settings):
    return change(Plan(), (*DDP, *settings))


def messages(trace):
    """Bytes of the messages of a step, by kind."""
    found = {}
    for op in trace.ops:
        if op.lane is Lane.COMM and "broadcast" not in op.name:
            kind = op.name.split(".")[1]
            found[kind] = found.get(kind, 0) + op.moved_bytes
    return found


def waiting(trace):
    names = {"waiting", "waiting part", "velocity", "p", "q"}
    return sum(trace.storages[i].nbytes for i in trace.pinned if trace.storages[i].name in names)


def gradient_bytes(trace):
    return sum(trace.storages[i].nbytes for i in gradients(trace.storages))


@pytest.mark.parametrize("way", WAYS)
def test_less_is_sent_and_the_step_stays_valid(way):
    trace = gpt(4)
    [whole], [found] = rewrite(trace, planned()), rewrite(trace, planned(f"gradients.compression={way}"))
    found.check()
    assert sum(messages(found).values()) < sum(messages(whole).values())
    # AND the backward pass computes what it did: hooks stand aside from its modules
    mine = [op for op in found.ops if op.module == GRADIENTS]
    assert mine
    assert {op.phase for op in mine} == {Phase.BACKWARD}
    assert sum(op.flops for op in found.ops if op.module != GRADIENTS) == sum(op.flops for op in whole.ops)


def test_bytes_on_the_wire_are_those_of_the_formulas():
    trace = gpt(4)
    [whole] = rewrite(trace, planned())
    n = messages(whole)["all_reduce"] // 4
    assert messages(whole) == {"all_reduce": gradient_bytes(trace)}
    ways = {way: messages(rewrite(trace, planned(f"gradients.compression={way}"))[0]) for way in WAYS}
    assert ways["float16"] == ways["bfloat16"] == {"all_reduce": 2 * n}
    # a number and its place, of each rank, for each hundredth of a bucket
    assert ways["topk"]["all_gather"] == pytest.approx(RANKS * 8 * 0.01 * n, rel=0.01)
    # codes both ways; scales and what fills up parts come to them
    for way, bits in (("qsgd", 8), ("terngrad", 2), ("signsgd", 1), ("onebit", 1)):
        assert set(ways[way]) == {"all_to_all", "all_gather"}
        for nbytes in ways[way].values():
            assert n * bits / 8 <= nbytes <= 1.05 * n * bits / 8 + 4096
    assert set(ways["powersgd"]) == {"all_reduce"}


def test_gradients_of_16_bits_are_sent_as_they_lie():
    def allocations(*settings):
        [found] = rewrite(gpt(4), planned("precision.compute=bfloat16", "precision.param=float32", *settings))
        return sum(e.nbytes > 0 for op in found.ops for e in op.events), len(found.setup)

    # WHEN they have the type of the wire, THEN nothing is allocated for them; of another type each bucket is copied
    assert allocations("gradients.compression=bfloat16") == allocations()
    assert allocations("gradients.compression=float16") > allocations()


@pytest.mark.parametrize(("way", "times"), [("topk", 1), ("signsgd", 1 + 1 / RANKS), ("qsgd", 0), ("float16", 0)])
def test_what_is_not_sent_rests_beside_the_buckets(way, times):
    trace = gpt(4)
    [found] = rewrite(trace, planned(f"gradients.compression={way}"))
    assert waiting(found) == pytest.approx(times * gradient_bytes(trace), rel=0.01)


def test_local_steps_send_parameters_and_no_gradients():
    trace = gpt(4)
    [found] = rewrite(trace, planned("gradients.local_steps=4"))
    found.check()
    sent = [op for op in found.ops if op.lane is Lane.COMM and "all_reduce" in op.name]
    assert [op.phase for op in sent] == [Phase.STEP]
    assert sent[0].moved_bytes == gradient_bytes(trace) // 4


def test_hooks_run_once_an_update_however_many_micro_batches():
    trace, cluster = gpt(4), find_cluster("h100-sxm-80gb:8")
    model = load(cluster.device)

    def added(accumulation):
        settings = (f"batch.accumulation={accumulation}",)
        plans = [planned(*settings), planned(*settings, "gradients.compression=signsgd")]
        return [time_step(local_step(trace, plan, cluster), model).classes["stream"] for plan in plans]

    once, often = added(2), added(8)
    assert often[1] - often[0] == pytest.approx(once[1] - once[0], rel=1e-6)


@pytest.mark.parametrize("more", [("gradients.compression=bfloat16",), ("gradients.local_steps=8",)])
def test_less_on_the_wire_takes_less_time(more):
    trace, cluster = gpt(4), find_cluster("p5:2")
    model, ranks = load(cluster.device), ["mesh.dp_replicate=16"]
    whole, less = (
        time_step(local_step(trace, change(planned(*some), ranks), cluster), model).classes["communication"]
        for some in ((), more)
    )
    assert less < whole


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (("mesh.dp_shard=2", "sharding.strategy=zero3", "gradients.compression=topk"), "buckets of whole gradients"),
        ((*DDP, "sharding.overlap=false", "gradients.compression=topk"), "overlap false"),
        (("mesh.dp_shard=2", "sharding.strategy=zero1", "gradients.compression=onebit"), "zero1 splits them"),
        ((*DDP, "gradients.compression=topk", "gradients.local_steps=2"), "parameters are sent"),
        ((*DDP, "gradients.compression=topk", "precision.compute=fp16_amp"), "by another number"),
        ((*DDP, "gradients.local_steps=2", "mesh.tp=2"), "whole models"),
        ((*DDP, "gradients.compression=zip"), "it is one of"),
        ((*DDP, "gradients.density=0.0"), "above 0"),
        ((*DDP, "gradients.warmup=1"), "2 or more"),
    ],
)
def test_what_cannot_be_is_refused_with_its_rule(settings, rule):
    with pytest.raises(UsageError, match=rule):
        change(Plan(), settings)


@pytest.mark.parametrize("way", ["dgc", "onebit"])
def test_a_part_of_the_optimizer_goes_with_that_optimizer(way):
    other = {"dgc": "adamw", "onebit": "sgd"}[way]
    with pytest.raises(UnsupportedError, match="takes a part of the work"):
        rewrite(gpt(4), planned(f"gradients.compression={way}", f"optimizer.name={other}"))
