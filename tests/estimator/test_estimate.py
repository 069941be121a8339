from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.estimate import estimate, price
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.step_time import SHARES, time_layers, time_step
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Kind, Lane, Op, Storage, Trace
from tests.estimator.passes.steps import gpt, reserved

H100 = "h100-sxm-80gb:8"
ZERO3 = ["mesh.dp_shard=8", "sharding.strategy=zero3"]


def plan(*settings):
    return change(Plan(), settings)


def priced(*settings, layers=4, cluster=H100, **arguments):
    return estimate(gpt(layers, **arguments), plan(*settings), find_cluster(cluster))


@pytest.mark.parametrize(
    "settings",
    [
        (), ("batch.accumulation=4",), tuple(ZERO3), ("mesh.dp_replicate=4", "sharding.strategy=ddp"), ("mesh.tp=2",),
        ("mesh.pp=2", "batch.accumulation=8"), ("remat.policy=full",), ("kernels.fusion=pointwise",),
        ("mesh.pp=2", "pipeline.chunks=2", "pipeline.schedule=interleaved", "batch.accumulation=4"),
        ("mesh.pp=2", "mesh.dp_replicate=2", "mesh.tp=2", "sharding.strategy=ddp", "batch.accumulation=2"),
    ],
)  # fmt: skip
def test_the_shares_are_the_step(settings):
    found = priced(*settings)
    assert set(found.breakdown) == set(SHARES)
    assert all(value >= 0 for value in found.breakdown.values())
    assert math.isclose(sum(found.breakdown.values()), found.step_seconds, rel_tol=1e-9)
    low, high = found.interval_seconds
    assert 0 < low < found.step_seconds < high
    assert found.bound in SHARES


def test_lanes_bound_the_step():
    found = priced(*ZERO3)
    assert max(found.lanes.values()) <= found.step_seconds <= sum(found.lanes.values()) + 0.01
    assert found.lanes[Lane.COMM.value] > 0


def test_micro_batches_add_up():
    # GIVEN a step that communicates nothing  WHEN it takes more micro-batches  THEN each costs the same
    two, three, nine = (priced(f"batch.accumulation={m}").step_seconds for m in (2, 3, 9))
    assert math.isclose(nine - three, 6 * (three - two), rel_tol=1e-9)
    assert priced("batch.accumulation=9").samples == 9 * 2


def test_gradients_of_ddp_are_sent_once_a_step():
    once, often = (priced("mesh.dp_replicate=8", "sharding.strategy=ddp", f"batch.accumulation={m}") for m in (1, 4))
    assert math.isclose(once.classes["communication"], often.classes["communication"], rel_tol=1e-9)
    assert priced(*ZERO3, "batch.accumulation=4").classes["communication"] > 2 * priced(*ZERO3).classes["communication"]


def test_recomputation_takes_time_and_gives_memory_and_no_flops():
    plain, remat = priced(batch=8, layers=6), priced("remat.policy=full", batch=8, layers=6)
    assert remat.step_seconds > plain.step_seconds
    assert remat.peak_reserved_bytes <= plain.peak_reserved_bytes
    assert remat.model_flops == plain.model_flops


def test_a_measured_step_is_its_seconds():
    # GIVEN ops with measured seconds and a host that costs nothing  WHEN the step is priced  THEN they are its seconds
    trace = gpt(3)
    trace = replace(trace, ops=tuple(replace(op, seconds=1e-3) for op in trace.ops))
    cluster = find_cluster(H100)
    model = replace(load(cluster.device), host_seconds=0.0, iteration_seconds=0.0)
    assert math.isclose(
        time_step(local_step(trace, Plan(), cluster), model).seconds, len(trace.ops) * 1e-3, rel_tol=1e-6
    )


def test_a_slow_host_decides_a_small_step():
    cluster = find_cluster(H100)
    slow = replace(load(cluster.device), host_seconds=1e-3)
    found = price(local_step(gpt(3), Plan(), cluster), slow)
    assert found.host_bound
    assert found.bound == "host"
    quick = price(local_step(gpt(3), plan("kernels.graphs=true"), cluster), slow)
    assert quick.step_seconds < found.step_seconds / 5


def test_layers_hold_all_seconds_of_ops():
    cluster = find_cluster(H100)
    step, model = local_step(gpt(3), plan(*ZERO3), cluster), load(cluster.device)
    layers = time_layers(step, model)
    total = sum(layer.forward_seconds + layer.backward_seconds + layer.step_seconds for layer in layers)
    timed = time_step(step, model)
    assert math.isclose(total, timed.lanes["compute"] + timed.lanes["comm"], rel_tol=1e-9)
    assert any(layer.module[:1] == ("blocks",) and layer.backward_seconds > layer.forward_seconds for layer in layers)


def test_memory_is_the_replay_of_the_rewritten_step():
    assert priced().peak_reserved_bytes == reserved(gpt(4))
    assert priced(*ZERO3).peak_allocated_bytes < priced().peak_allocated_bytes
    deep = priced("mesh.pp=2", "batch.accumulation=4")
    assert deep.peak_allocated_bytes < deep.peak_reserved_bytes < reserved(gpt(4)) + (2 << 20)
    assert deep.fits
    assert "Memory is that of pipeline stage 0, which reserves most." in deep.notes


def test_a_pipeline_has_a_bubble_that_more_micro_batches_thin_out():
    few, many = (priced("mesh.pp=4", f"batch.accumulation={m}") for m in (4, 64))
    assert few.breakdown["bubble"] / few.step_seconds > many.breakdown["bubble"] / many.step_seconds > 0


def test_rates_and_prices_follow_from_the_step():
    trace = replace(gpt(3), batch={"batch_size": 2, "seq_len": 32})
    found = estimate(trace, plan(*ZERO3), find_cluster(H100))
    assert found.tokens == 8 * 2 * 32
    assert found.per_second(found.tokens) == found.tokens / found.step_seconds
    assert 0 < found.mfu < 1
    low, high = found.usd_per_billion_tokens
    assert math.isclose(low * found.tokens / 1e9, found.usd_per_step[0])
    assert low <= high
    assert math.isclose(found.joules_bound, 700 * 8 * found.step_seconds)


@pytest.mark.parametrize(
    ("settings", "cluster", "error", "words"),
    [
        (("mesh.tp=4", "mesh.pp=4"), H100, UsageError, "= 16 ranks, but h100-sxm-80gb:8 has 8 GPUs"),
        (("mesh.cp=3",), H100, UnsupportedError, "has no sequences to share"),
        (("mesh.pp=8",), H100, UnsupportedError, "the model has 4 equal blocks"),
        (("mesh.tp=3",), H100, UnsupportedError, "64 % tp 3 = 1"),
    ],
)
def test_what_cannot_be_is_one_error(settings, cluster, error, words):
    with pytest.raises(error) as raised:
        priced(*settings, cluster=cluster)
    assert words in raised.value.message


def test_gathering_along_a_later_dimension_costs_a_copy():
    settings = ("mesh.tp=2", "tensor.sequence_parallel=true")
    copied, first = priced(*settings), priced(*settings, "tensor.sequence_first=true")
    assert copied.classes["communication"] > first.classes["communication"]


def test_tensor_parallel_ranks_share_what_goes_between_stages():
    settings = ("mesh.pp=2", "mesh.tp=2", "batch.accumulation=8")
    wide = {"batch": 64, "width": 256}
    alone = priced(*settings, "pipeline.scatter_gather=false", cluster="hgx-a100-4nic:1", **wide)
    assert priced(*settings, cluster="hgx-a100-4nic:1", **wide).step_seconds != alone.step_seconds


def test_what_bounds_an_op_is_told_by_the_rate_of_its_own_type():
    # GIVEN products of 2048 in float32, whose peak is an eighth of that of float16  WHEN their step is priced
    found = priced(batch=64, width=2048, layers=2)
    # THEN arithmetic bounds all of them
    assert found.breakdown["compute"] >= found.classes["gemm"]


def test_kernels_of_another_gpu_are_told():
    words = "recorded with the kernels of h100-sxm-80gb, which may not be those of a100-sxm-80gb"
    assert any(words in note for note in priced(cluster="a100-sxm-80gb:1").notes)
    assert not any("may not be" in note for note in priced().notes)


def test_utilization_is_of_the_type_that_the_plan_computes_in():
    # GIVEN a step in float32  WHEN autocast does its products in bfloat16
    plain, cast = priced(), priced("precision.compute=bf16_amp")
    # THEN the same flops are held against what the GPU can do in bfloat16
    rates = find_cluster(H100).device.flops_per_s
    for found, dtype in ((plain, "float32"), (cast, "bfloat16")):
        assert found.mfu == pytest.approx(found.model_flops / (found.step_seconds * rates[dtype]))


def test_more_than_all_flops_are_explained():
    # GIVEN a causal kernel that skips half of what MFU counts  WHEN it runs at 0.9 of the peak  THEN a note says why
    op = Op(name="aten._scaled_dot_product_flash_attention.default", flops=10**12, masked_flops=5 * 10**11, writes=(0,))
    out = Storage(id=0, nbytes=2 * 2**20, kind=Kind.TEMP, shape=(1, 2**14, 64), dtype="bfloat16")
    step = local_step(Trace(ops=(op,), storages={0: out}), Plan(), find_cluster("h100:1"))
    model = load(step.cluster.device)
    for share, told in ((0.9, True), (0.2, False)):
        found = price(step, replace(model, attention_forward=share, iteration_seconds=0.0), memory=False)
        assert found.mfu is not None
        assert (found.mfu > 1) is told
        assert any("exceed 100 %" in note for note in found.notes) is told
