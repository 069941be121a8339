from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from dnnmem.estimator.build import build_profile
from dnnmem.estimator.profile import PARTS, Measurement
from dnnmem.estimator.trace import Kind, Storage
from tests.strategies import step_trace

MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    name: str = "h100-sxm-80gb"
    usable_bytes: int = 64 * MIB
    context_bytes: int | None = 5 * MIB


def _known(profile):
    return {part: nbytes for part, nbytes in profile.parts.items() if nbytes}


def test_without_measurements_or_gpu_the_trace_is_the_stack():
    # GIVEN the step made by hand, on the CPU  WHEN its profile is built
    profile = build_profile(step_trace(8), Measurement(), None)
    # THEN the parts are its kinds at the peak, and what nobody knows is None
    assert _known(profile) == {"param": 64, "optimizer": 64, "input": 128, "activation": 128, "temp": 68}
    assert tuple(profile.parts) == PARTS
    assert [part for part, nbytes in profile.parts.items() if nbytes is None] == [
        "workspace",
        "fragmentation",
        "context",
    ]
    assert profile.total_bytes == profile.peak.allocated_bytes == 452
    assert (profile.fits, profile.usable_bytes, profile.gpu, profile.peak.reserved_bytes) == (None, None, None, None)
    assert (profile.target, profile.device, profile.batch["batch_size"]) == ("model.py", "cpu", 8)
    assert profile.notes == ("Made by hand.",)


def test_the_moment_of_the_peak():
    peak = build_profile(step_trace(8), Measurement(), None).peak
    assert (peak.phase, peak.module, peak.op, peak.source) == ("backward", "act", "relu_backward", "model.py:7")


def test_a_peak_before_the_first_op_has_no_op():
    trace = replace(step_trace(1), ops=())
    peak = build_profile(trace, Measurement(), None).peak
    assert (peak.phase, peak.module, peak.op, peak.source) == ("forward", "", "", "")


def test_measured_bytes_beyond_the_trace_are_temporaries_and_noted():
    profile = build_profile(step_trace(8), Measurement(allocated_bytes=1452), None)
    assert (profile.parts["temp"], profile.total_bytes) == (1068, 1452)
    assert "1000 B more" in profile.notes[-1]


def test_measured_bytes_below_the_trace_shrink_temporaries_first_and_are_noted():
    # GIVEN 452 recorded bytes, of them 68 temporary  WHEN only 300 were measured
    profile = build_profile(step_trace(8), Measurement(allocated_bytes=300), None)
    # THEN temp gives all it has, and activations the rest
    assert _known(profile) == {"param": 64, "optimizer": 64, "input": 128, "activation": 44}
    assert profile.total_bytes == 300
    assert "152 B less" in profile.notes[-1]
    assert "68 B from temp, 84 B from activation" in profile.notes[-1]


@pytest.mark.parametrize("measured", [0, 10, 100, 451, 452, 453])
def test_parts_sum_to_whatever_was_measured(measured):
    profile = build_profile(step_trace(8), Measurement(allocated_bytes=measured), None)
    assert sum(n for n in profile.parts.values() if n is not None) == profile.total_bytes == measured
    assert min(n for n in profile.parts.values() if n is not None) >= 0


def test_measured_reserved_and_context_make_up_the_total():
    facts = {"clock_mhz": 1980}
    measurement = Measurement(
        allocated_bytes=452, reserved_bytes=4 * MIB, context_bytes=MIB, step_seconds=0.25, facts=facts
    )
    profile = build_profile(step_trace(8), measurement, Gpu())
    assert (profile.parts["fragmentation"], profile.parts["context"]) == (4 * MIB - 452, MIB)
    assert (profile.total_bytes, profile.fits, profile.usable_bytes) == (5 * MIB, True, 64 * MIB)
    assert (profile.step_seconds, profile.facts) == (0.25, facts)


def test_reserved_bytes_of_an_assumed_gpu_are_a_replay():
    # GIVEN a step of less than 1 MiB on an assumed GPU  WHEN nothing was measured
    profile = build_profile(step_trace(8), Measurement(), Gpu())
    # THEN it holds one small segment of 2 MiB and the GPU's context
    assert profile.peak.reserved_bytes == 2 * MIB
    assert (profile.parts["fragmentation"], profile.total_bytes) == (2 * MIB - 452, 7 * MIB)
    assert profile.parts["workspace"] == 0
    assert profile.gpu == "h100-sxm-80gb"


def test_an_unknown_context_stays_unknown():
    assert build_profile(step_trace(8), Measurement(), Gpu(context_bytes=None)).parts["context"] is None


@pytest.mark.parametrize(("usable", "fits"), [(7 * MIB, True), (7 * MIB - 1, False)])
def test_a_step_fits_if_all_of_it_does(usable, fits):
    assert build_profile(step_trace(8), Measurement(), Gpu(usable_bytes=usable)).fits is fits


def test_reserved_below_allocated_is_not_believed():
    profile = build_profile(step_trace(8), Measurement(reserved_bytes=100), None)
    assert (profile.parts["fragmentation"], profile.total_bytes, profile.peak.reserved_bytes) == (0, 452, 452)
    assert "the larger number counts" in profile.notes[-1]


def test_kept_workspaces_are_a_part_of_their_own():
    # GIVEN a step that starts with a cuBLAS workspace of 1 MiB
    trace = step_trace(8)
    storage = Storage(id=99, nbytes=MIB, kind=Kind.TEMP, name="workspace")
    trace = replace(trace, storages={**trace.storages, 99: storage}, pinned=trace.pinned | {99})
    # WHEN its profile is built  THEN the workspace is apart from the temporaries
    profile = build_profile(trace, Measurement(), Gpu())
    assert (profile.parts["workspace"], profile.parts["temp"]) == (MIB, 68)


@pytest.mark.parametrize(("growth", "told"), [(2048, True), (0, False), (-5, False)])
def test_growth_is_told_as_a_leak(growth, told):
    notes = build_profile(step_trace(8), Measurement(growth_bytes=growth), None).notes
    assert any("2.0 KiB more alive after the step" in note for note in notes) is told
