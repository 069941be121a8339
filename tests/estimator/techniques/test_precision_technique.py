"""Types are searched that a step is not in already; float8 where it is named, on GPUs that multiply in 8 bits."""

from __future__ import annotations

import pytest

from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.plan import Mesh, Plan
from dnnmem.estimator.techniques import Scope
from dnnmem.estimator.techniques.precision import techniques as types
from dnnmem.estimator.techniques.precision_linear import techniques


def offered(cluster, *, of=techniques, plan=None, **options):
    scope = Scope(
        cluster=find_cluster(cluster), global_batch=8, micro_batches=(8,), blocks=4, gpus=(1,),
        fields=frozenset({"precision"}), **options,
    )  # fmt: skip
    return [technique for technique in of(scope, plan or Plan()) if technique.name]


@pytest.mark.parametrize("computes", ["bfloat16", "bf16_amp"])
def test_a_type_that_the_step_is_in_is_no_technique(computes):
    # GIVEN a step in a narrow type  THEN the others are offered, and that one where the step is in float32 alone
    narrow, plain = ({t.name for t in offered("h100:1", of=types, computes=c)} for c in (computes, "float32"))
    assert plain - narrow == {computes}


def test_float8_is_searched_only_by_name():
    # GIVEN leave to change types  THEN 8 bits are not among them, unless they are named; then it says what changes
    assert not offered("h100-sxm-80gb:1", allow=frozenset({"precision"}))
    [found] = offered("h100-sxm-80gb:1", allow=frozenset({"float8"}))
    assert found.settings == ("precision.linear=float8",)
    assert found.alters


@pytest.mark.parametrize("cluster", ["a100-sxm-80gb:1", "mi300x:1"])
def test_no_gpu_is_offered_what_it_cannot(cluster):
    assert not offered(cluster, allow=frozenset({"float8"}))


def test_layers_that_are_split_stay_as_they_are():
    assert not offered("h100-sxm-80gb:1", plan=Plan(mesh=Mesh(tp=2)), allow=frozenset({"float8"}))
