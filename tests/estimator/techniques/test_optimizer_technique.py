"""Other optimizers in the search: only those that are named, where they can be, and they say that training changes."""

from __future__ import annotations

import pytest

from dnnmem.estimator.plan_check import OPTIMIZERS
from dnnmem.estimator.recommend import Wanted, scope_of
from dnnmem.estimator.search import priced_exactly
from dnnmem.estimator.search_cost import Costs
from dnnmem.estimator.techniques import choices
from dnnmem.estimator.time_model import load
from tests.estimator.test_search import machine, recorded


def space(*allow, gpus=1):
    wanted = Wanted(cluster=machine(gpus), allow=frozenset(allow), max_techniques=2)
    return choices(scope_of(recorded(), wanted))


def test_the_usual_space_is_as_ever():
    # GIVEN no name, or that of the file  THEN new ones are not in the space
    assert {choice.plan.optimizer.name for choice in space()} == {None}
    assert {choice.plan.optimizer.name for choice in space("optimizer")} == {
        None, "sgd", "adamw", "adamw8bit", "adafactor",
    }  # fmt: skip
    assert not any(choice.plan.optimizer.state or choice.plan.optimizer.in_backward for choice in space("optimizer"))


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"sgd", "adamw", "adamw8bit", "adafactor"}))
def test_others_are_searched_by_name(name):
    found = [choice for choice in space(name) if choice.plan.optimizer.name]
    assert {choice.plan.optimizer.name for choice in found} == {name}
    assert all(choice.alters for choice in found)


def test_updates_in_the_backward_pass_need_one_gpu_and_one_pass():
    one, four = (
        [c.plan for c in space("in_backward", gpus=gpus) if c.plan.optimizer.in_backward] for gpus in (1, 4)
    )  # fmt: skip
    assert one
    assert all(plan.batch.accumulation == 1 for plan in one)
    assert not four


@pytest.mark.parametrize("name", ["in_backward", "bf16_moments", "fp16_moments", "lion", "muon", "galore"])
def test_each_can_be_priced(name):
    # GIVEN the plan that has it, and nothing else  THEN it needs no more than the plain step
    plain, alone = (
        next(choice for choice in space(name) if [t.name for t in choice.techniques if t.name] == names)
        for names in ([], [name])
    )
    cluster = machine(1)
    costs = Costs(recorded=recorded(), cluster=cluster, model=load(cluster.device))
    least, found = (priced_exactly(costs, choice, 1 << 40).estimate for choice in (plain, alone))
    assert found.peak_reserved_bytes <= least.peak_reserved_bytes
    assert found.step_seconds > 0
