"""Types at rest: master weights beside what computes, and gradients that are wider than they were recorded."""

from __future__ import annotations

import pytest

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.op_class import OpClass
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.passes.precision import alters_training, apply
from dnnmem.estimator.plan import Plan, Precision
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.roofline import peak_rates
from dnnmem.estimator.trace import Kind, Phase
from dnnmem.estimator.work import work_of
from tests.estimator.passes.steps import LLAMA, WRITTEN, gpt

BF16 = {**LLAMA, "dtype": "bfloat16"}


def owned(trace, kind):
    return sum(trace.storages[i].nbytes for i in trace.pinned if trace.storages[i].kind is kind)


def test_master_weights_make_sixteen_bytes_a_parameter():
    # GIVEN a step in bfloat16  WHEN weights and gradients rest in float32, as Megatron has them
    trace = gpt(3, **BF16)
    found = apply(trace, Plan(precision=Precision(param="float32", grad="float32")))
    found.check()
    # THEN 2 bytes compute, 4 are the master's, 8 the moments', 4 the gradient's
    count = owned(trace, Kind.PARAM) // 2
    assert owned(found, Kind.PARAM) == 2 * count
    assert owned(found, Kind.OPTIMIZER) == pytest.approx(12 * count, rel=0.001)
    touched = {i for op in found.ops for i in op.writes if found.storages[i].kind is Kind.GRAD}
    assert sum(found.storages[i].nbytes for i in touched) == 4 * count
    # AND the update works on the master, and casts back
    assert found.ops[-1].moved_bytes == 6 * count
    before, after = (sum(op.moved_bytes for op in t.ops if op.phase is Phase.STEP) for t in (trace, found))
    assert after == pytest.approx(2 * before + 6 * count, rel=0.01)


def test_types_as_recorded_change_nothing():
    trace = gpt(3)
    assert apply(trace, Plan(precision=Precision(param="float32", grad="float32"))) is trace


def test_narrower_weights_at_rest_are_refused():
    with pytest.raises(UnsupportedError, match="narrower than the float32"):
        apply(gpt(3), Plan(precision=Precision(param="bfloat16")))


COMPUTE = ["float32", "tf32", "bf16_amp", "fp16_amp", "bfloat16"]


def compute_in(trace, compute, **more):
    found = apply(trace, Plan(precision=Precision(compute=compute, **more)))
    found.check()
    return found


@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("step", [{}, LLAMA, WRITTEN], ids=["gpt", "llama", "written"])
def test_every_type_does_all_the_work(compute, step):
    # GIVEN a float32 step  WHEN it computes in any type  THEN it is a valid step with the same products
    trace = gpt(3, **step)
    found = compute_in(trace, compute)
    assert sum(op.flops for op in found.ops) == sum(op.flops for op in trace.ops)


def test_autocast_casts_each_weight_once_and_multiplies_in_the_lower_type():
    # GIVEN a float32 step  WHEN under autocast
    found = compute_in(gpt(3), "bf16_amp")
    storages = found.storages
    products = [op for op in found.ops if op.name in {"aten.mm.default", "aten.addmm.default"}]
    # THEN products read and make bfloat16, parameters and their gradients stay in float32
    assert {storages[i].dtype for op in products for i in (*op.reads, *op.writes)} == {"bfloat16"}
    owned_types = {s.dtype for s in storages.values() if s.kind in {Kind.PARAM, Kind.GRAD, Kind.OPTIMIZER}}
    assert owned_types == {"float32"}
    casts = [op.reads[0] for op in found.ops if op.phase is Phase.FORWARD and op.name == "aten._to_copy.default"]
    weights = [i for i in casts if storages[i].kind is Kind.PARAM]
    assert len(weights) == len(set(weights)) > 0


def test_a_model_cast_whole_halves_what_it_owns():
    trace = gpt(3)
    found = compute_in(trace, "bfloat16")
    for kind in (Kind.PARAM, Kind.OPTIMIZER):
        assert owned(found, kind) == pytest.approx(owned(trace, kind) / 2, rel=0.001)


@pytest.mark.parametrize("compute", ["tf32", "bf16_amp", "fp16_amp", "bfloat16"])
def test_lower_types_multiply_faster(compute):
    device = find_device("h100-sxm-80gb")
    plain, found = gpt(3), compute_in(gpt(3), compute)
    before, after = (peak_rates(work_of(t), device)[work_of(t).kind == OpClass.GEMM] for t in (plain, found))
    assert after.min() > before.max()


def test_a_step_recorded_in_another_type_is_refused_by_its_name():
    trace = gpt(3, **BF16)
    assert apply(trace, Plan(precision=Precision(compute="bfloat16"))) is trace
    for compute in ("float32", "tf32", "bf16_amp", "fp16_amp"):
        with pytest.raises(UnsupportedError, match="recorded in bfloat16"):
            apply(trace, Plan(precision=Precision(compute=compute)))


def test_what_changes_the_numbers_is_named():
    assert alters_training(Plan()) == ()
    assert alters_training(Plan(precision=Precision(compute="bf16_amp"))) == ("precision.compute=bf16_amp",)


@pytest.mark.parametrize("compute", ["bf16_amp", "fp16_amp", "bfloat16"])
@pytest.mark.parametrize(
    "more",
    ["remat.policy=full", "remat.policy=selective", "mesh.pp=2", "batch.accumulation=4", "kernels.fusion=pointwise"],
)
def test_types_go_with_other_techniques(compute, more):
    for found in rewrite(gpt(4), change(Plan(), [f"precision.compute={compute}", more])):
        found.check()


def test_fsdp_computes_in_bfloat16_over_parts_in_float32_from_either_record():
    # GIVEN one model recorded in float32, and in bfloat16  WHEN FSDP2 holds float32 parts and computes in bfloat16
    shared = ["precision.param=float32", "sharding.strategy=zero3", "mesh.dp_shard=4"]
    [one] = rewrite(gpt(4, dtype="bfloat16"), change(Plan(), shared))
    [other] = rewrite(gpt(4), change(Plan(), ["precision.compute=bfloat16", *shared]))
    # THEN both need the same, but for the outputs that are cast
    assert other.peak_bytes() == pytest.approx(one.peak_bytes(), rel=0.005)
