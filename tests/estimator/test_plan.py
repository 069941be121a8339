from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.plan import Batch, Mesh, Pipeline, Plan, Remat, Sharding, check
from dnnmem.estimator.plan_text import change, from_json, to_json

DEGREE = st.integers(1, 64)
PLANS = st.builds(
    Plan,
    mesh=st.builds(Mesh, dp_shard=DEGREE, tp=DEGREE, pp=DEGREE),
    batch=st.builds(Batch, micro_batch=st.none() | DEGREE, accumulation=DEGREE),
    remat=st.builds(Remat, policy=st.sampled_from(("none", "full", "selective"))),
    sharding=st.builds(Sharding, strategy=st.sampled_from(("zero1", "zero2", "zero3"))),
)


@given(PLANS)
def test_a_plan_survives_json(plan):
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan


@given(PLANS)
def test_every_field_can_be_set_by_its_name(plan):
    # GIVEN the settings that spell a plan out  WHEN they change the default one  THEN it is the plan
    settings = [
        f"{part}.{name}={json.dumps(value).strip(chr(34))}"
        for part, table in to_json(plan).items()
        if part != "schema"
        for name, value in table.items()
    ]
    assert change(Plan(), settings) == plan


def test_equal_plans_are_one_key():
    assert len({change(Plan(), ["mesh.tp=2"]), change(Plan(), ["mesh.tp=2"]), Plan()}) == 2


def test_the_default_plan_is_one_gpu():
    assert Plan().mesh.world_size == 1
    assert all(getattr(Mesh(), f.name) == 1 for f in fields(Mesh))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["mesh.tpp=2"], "--set mesh.tpp=2 names nothing of a plan"),
        (["mesh.tp"], "--set mesh.tp names nothing of a plan"),
        (["mesh.tp=two"], "it is a whole number"),
        (["mesh.tp=true"], "it is a whole number"),
        (["mesh.tp=0"], "mesh.tp is 0; it is 1 or more"),
        (["tensor.sequence_parallel=2"], "it is true or false"),
        (["remat.policy=all"], "remat.policy is 'all'; it is one of none, full"),
        (["precision.param=int8"], "precision.param is 'int8'; it is float32, float16 or bfloat16"),
        (["mesh.dp_shard=8"], "ranks share nothing: sharding.strategy is none"),
        (["mesh.dp_shard=8", "sharding.strategy=ddp"], "ddp shards nothing, but dp_shard is 8"),
        (["pipeline.chunks=2"], "pipeline.chunks is 2 under 1f1b"),
        (["mesh.ep=2"], "dp_shard 1 % ep 2 = 1, but it must be 0"),
        (["mesh.dp_shard=4", "sharding.strategy=zero1", "mesh.ep=2"], "ep 2 splits experts over ranks"),
        (["experts.imbalance=1.5"], "the busiest of ep 1 ranks has between 1 and 1 times the mean"),
        (["experts.capacity=0.0"], "experts.capacity is 0.0; it is above 0"),
        (["pipeline.chunks=2", "pipeline.schedule=interleaved"], "interleaved needs pp of 2 or more"),
    ],
)
def test_a_wrong_setting_is_one_error(settings, words):
    with pytest.raises(UsageError) as error:
        change(Plan(), settings)
    assert words in error.value.message


@pytest.mark.parametrize(
    "data",
    [
        None, [], "plan", {"schema": "dnnmem.plan/9"}, {"mesh": 3}, {"mesh": {"tp": "2"}}, {"mesh": {"tp": 0}},
        {"mesh": {"width": 2}}, {"meshes": {}}, {"batch": {"accumulation": 1.5}}, {"remat": {"policy": None}},
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_error(data):
    with pytest.raises(UsageError):
        from_json(data, "my.json")


def test_a_whole_number_is_a_number():
    # GIVEN a field that takes any number  WHEN it is given a whole one  THEN it is that, from words and from a file
    ways = change(Plan(), ["experts.capacity=2"]), from_json({"experts": {"capacity": 2}})
    assert [(type(plan.experts.capacity), plan.experts.capacity) for plan in ways] == [(float, 2.0)] * 2


def test_what_a_file_leaves_out_keeps_its_default():
    plan = from_json({"mesh": {"pp": 4}, "pipeline": {"schedule": "gpipe"}})
    assert plan == Plan(mesh=Mesh(pp=4), pipeline=Pipeline(schedule="gpipe"))
    check(plan)
