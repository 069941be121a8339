import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.errors import InternalError, UsageError
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.script_result import OUTCOMES, DeviceMemory, OutOfMemory, RankResult, StepPeak

sizes = st.integers(0, 2**40)
devices = st.builds(
    DeviceMemory,
    device=st.integers(0, 7),
    reserved_bytes=sizes,
    outside_bytes=st.none() | sizes,
    steps=st.lists(st.builds(StepPeak, allocated_bytes=sizes, reserved_bytes=sizes), max_size=3).map(tuple),
)
results = st.builds(
    RankResult,
    outcome=st.sampled_from(OUTCOMES),
    rank=st.none() | st.integers(0, 63),
    memory=st.lists(devices, max_size=3).map(tuple),
    oom=st.none() | st.builds(OutOfMemory, message=st.text(), asked_bytes=st.none() | sizes),
    notes=st.lists(st.text(), max_size=2).map(tuple),
    optimizers=st.dictionaries(st.text(), st.integers(0, 9), max_size=2),
)


@given(results)
def test_a_result_survives_the_way_between_processes(result):
    assert RankResult.from_json(result.to_json()) == result


@given(results)
def test_the_gpu_that_counts_is_the_one_that_needs_most(result):
    most = max((gpu.reserved_bytes for gpu in result.memory), default=None)

    assert (result.device.reserved_bytes if result.device else None) == most


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"outcome": "ran"}', '{"memory": [{}], "oom": null}'])
def test_a_broken_result_is_an_internal_error(text):
    with pytest.raises(InternalError):
        RankResult.from_json(text)


@pytest.mark.parametrize("numbers", [{"steps": 0}, {"world_size": 0}, {"rank": 2, "world_size": 2}, {"rank": -1}])
def test_numbers_that_no_run_can_have_are_refused(numbers):
    with pytest.raises(UsageError):
        ScriptRequest(script="train.py", **numbers)
