"""Whether a step needs more than what was accepted."""

import pytest

from dnnmem.estimator.baseline import Entry, Key, Limits, blame, entry_of, judge
from dnnmem.estimator.build import build_profile
from dnnmem.estimator.profile import Measurement
from tests.estimator.passes.steps import gpt

KEY = Key(target="model.py", batch={"batch_size": 8}, device="fake", gpu="a10g-24gb", torch="2.14")


def entry(allocated, *, total=None, seconds=None, **modules):
    """A step that holds so much in these modules."""
    held = {(name, "activation"): nbytes for name, nbytes in modules.items()}
    return Entry(key=KEY, allocated_bytes=allocated, total_bytes=total, modules=held, step_seconds=seconds)


def by_key(*entries):
    """A baseline of these."""
    return {one.key.text: one for one in entries}


@pytest.mark.parametrize(
    ("now", "outcome"), [(100, "ok"), (102, "ok"), (103, "regressed"), (98, "ok"), (97, "improved")]
)
def test_a_peak_may_grow_by_its_limit(now, outcome):
    # GIVEN an accepted peak of 100  WHEN it is another  THEN 2 % either way are no news
    assert judge(entry(now), by_key(entry(100)), Limits(max_increase=0.02)).outcome == outcome


def test_blame_names_the_module_that_grew_most():
    # GIVEN a step where one module grew, one shrank and one came
    before = entry(100, fc=40, head=60)
    after = entry(170, fc=90, head=50, extra=30)
    # WHEN they are compared  THEN the largest change is first
    changes = judge(after, by_key(before), Limits()).changes
    assert [(c.module, c.grown_bytes) for c in changes] == [("fc", 50), ("extra", 30), ("head", -10)]


def test_a_budget_holds_against_the_whole():
    # GIVEN a step whose context takes it over the budget
    found = judge(entry(90, total=110), by_key(entry(90, total=110)), Limits(budget_bytes=100))
    # THEN it fails, though nothing grew
    assert (found.outcome, found.fails) == ("over budget", True)


def test_a_first_step_is_new_and_may_be_over_budget():
    assert judge(entry(90, total=90), {}, Limits(budget_bytes=100)).outcome == "new"
    assert judge(entry(90, total=110), {}, Limits(budget_bytes=100)).fails


def test_time_counts_only_when_asked_for():
    # GIVEN a step that takes twice as long
    before, after = entry(100, seconds=1.0), entry(100, seconds=2.0)
    # THEN it fails only under a limit
    assert judge(after, by_key(before), Limits()).outcome == "ok"
    assert judge(after, by_key(before), Limits(max_slowdown=0.2)).outcome == "regressed"


def test_an_entry_adds_up_to_the_peak():
    # GIVEN a recorded step
    trace = gpt(2)
    profile = build_profile(trace, Measurement(), None)
    # WHEN it is kept  THEN its modules hold what the peak holds, and say where it was made
    found = entry_of(profile, trace)
    assert sum(found.modules.values()) == found.allocated_bytes == profile.peak.allocated_bytes
    assert any("aten." in source for source in found.sources.values())


def test_another_key_is_named_and_not_compared():
    # GIVEN a baseline of the same model on another torch
    other = Entry(key=Key(target="model.py", device="fake", gpu=None, torch="2.13"), allocated_bytes=1)
    # WHEN the step is judged  THEN it is new, and says what it was not compared with
    found = judge(entry(100), by_key(other), Limits())
    assert (found.outcome, found.before, found.others) == ("new", None, (other.key,))


def holding(allocated, held):
    """A step that holds so much by module and kind."""
    return Entry(key=KEY, allocated_bytes=allocated, modules=held)


def test_a_module_with_another_name_is_no_change():
    # GIVEN two that were renamed, one of which grew
    before = holding(100, {("a.fc1", "param"): 40, ("a.fc2", "param"): 60})
    after = holding(130, {("a.up", "param"): 40, ("a.down", "param"): 90})
    # WHEN
    changes = judge(after, by_key(before), Limits()).changes
    # THEN
    assert [(change.module, change.grown_bytes) for change in changes] == [("a.down", 90), ("a.fc2", -60)]


def test_what_only_moved_between_equal_blocks_is_nobodys_growth():
    # GIVEN a peak that was in the last block and is in the first
    before = holding(100, {("h.0", "param"): 10, ("h.3", "param"): 10, ("h.3", "temp"): 50})
    after = holding(104, {("h.0", "param"): 12, ("h.3", "param"): 12, ("h.0", "temp"): 50})
    # WHEN
    found = blame(judge(after, by_key(before), Limits()))
    # THEN
    assert [(line.label, line.grown_bytes, dict(line.kinds)) for line in found] == [("h.0,3", 4, {"param": 4})]


def test_who_changed_as_the_peak_did_goes_first():
    # GIVEN
    places = [("a", "temp"), ("b", "temp")]
    small, large = dict(zip(places, (80, 10), strict=True)), dict(zip(places, (20, 80), strict=True))
    grown = judge(holding(100, large), by_key(holding(90, small)), Limits())
    fallen = judge(holding(90, small), by_key(holding(100, large)), Limits())
    # THEN
    assert [line.label for line in blame(grown)] == ["b", "a"]
    assert [line.label for line in blame(fallen)] == ["b", "a"]
    assert [line.grown_bytes for line in blame(fallen)] == [-70, 60]
