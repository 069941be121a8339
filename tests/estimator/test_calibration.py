"""Calibrations: what is refused, and the file that carries one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dnnmem.estimator.calibration import PARAMETERS, fit
from dnnmem.estimator.calibration_file import is_calibration, read_rates, write_calibration
from dnnmem.estimator.curve import Curve, between
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.time_model import load
from tests.estimator.steps_by_hand import H100, step

MODEL = load(H100.device)


def test_every_number_of_the_model_has_a_prior_or_is_no_rate():
    kinds = set(PARAMETERS.values())
    assert kinds | {"step"} == set(MODEL.spread)
    assert PARAMETERS["nvlink"] == "communication"
    assert PARAMETERS["gemm"] == PARAMETERS["attention_backward"] == "arithmetic"


@pytest.mark.parametrize("seconds", [[], [0.0], [float("nan")], [0.1, 0.2]])
def test_times_that_are_none_are_refused(seconds):
    with pytest.raises(UsageError):
        fit([step(tiny=1)], seconds, MODEL)


def test_a_file_carries_rates_spreads_and_curves(tmp_path):
    # GIVEN a model with some of everything, written
    curves = {"gelu": Curve(sizes=(1e3, 1e6), seconds=(1e-6, 2e-4))}
    wanted = replace(
        MODEL, gemm=0.5, host_seconds=3e-6, iteration_seconds=2e-4, fault_seconds_per_byte=3e-10, curves=curves
    )
    values = {name: getattr(wanted, name) for name in PARAMETERS} | {"spread_host": 0.1}
    path = tmp_path / "rates.toml"
    path.write_text(write_calibration({}, {}, values, curves, ["a test"]))
    # WHEN it is read over the packaged model
    found = load(H100.device, path)
    # THEN all is there, to four digits
    assert is_calibration(str(path))
    assert found.spread == {**MODEL.spread, "host": 0.1}
    assert found.curves["gelu"].seconds == pytest.approx(curves["gelu"].seconds)
    for name in PARAMETERS:
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-3), name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "no calibration"),
        ('schema = "dnnmem.calibration/1"\nrates = 3', "no table"),
        ('schema = "dnnmem.calibration/1"\n[rates]\ngemm_share = "fast"', "number of 0 or more"),
        ('schema = "dnnmem.calibration/1"\n[rates]\nwarp_share = 1', "warp"),
        ('schema = "dnnmem.calibration/1"\n[curves.gelu]\nsize = [2, 1]\nus = [1, 1]', "ascend"),
        ('schema = "dnnmem.calibration/1"\n[curves.gelu]\nsize = [1]', "us"),
        ('schema = "dnnmem.calibration/1"\n[curves.gelu]\nsize = [1]\nus = ["a"]', "number"),
    ],
)
def test_a_faulty_file_is_one_message_with_its_place(tmp_path, text, said):
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        read_rates(path, MODEL)
    assert "my.toml" in error.value.message


def test_between_sides_the_time_lies_between():
    # GIVEN two curves  WHEN a side lies between theirs, or outside
    slow, fast = Curve(sizes=(1e6,), seconds=(4e-3,)), Curve(sizes=(1e6,), seconds=(1e-3,))
    found = between({4.0: slow, 64.0: fast}, np.full(4, 1e6), np.array([1.0, 4.0, 16.0, 1e4]))
    # THEN it is interpolated on a log line, and the ends hold on
    assert found == pytest.approx([4e-3, 4e-3, 2e-3, 1e-3])
