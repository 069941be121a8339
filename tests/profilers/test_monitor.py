"""NVML is asked where it is; without it, or where it refuses, nothing is said and nothing fails."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from dnnmem.profilers import monitor
from dnnmem.profilers.monitor import Reading, read


class NVMLError(Exception):
    pass


def refuse(*_):
    raise NVMLError


def nvml(**changes):
    """A module like pynvml on a machine with one GPU, on which this process and another one run."""
    processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=3), SimpleNamespace(pid=1, usedGpuMemory=4)]
    calls = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=10, free=90),
        "nvmlDeviceGetComputeRunningProcesses": lambda _: processes,
        "nvmlDeviceGetClockInfo": lambda *_: 1980,
        "nvmlDeviceGetTemperature": lambda *_: 61,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 0x04 | 0x20 | 0x01,
    }
    return SimpleNamespace(**{**calls, **changes})


@pytest.fixture
def become(monkeypatch):
    return lambda module: monkeypatch.setitem(sys.modules, "pynvml", module)


def test_a_gpu_is_read(become):
    become(nvml())
    assert read() == Reading(
        used_bytes=10,
        free_bytes=90,
        own_bytes=3,
        others_bytes=4,
        sm_clock_mhz=1980,
        temperature_c=61,
        throttled="power cap, thermal (software)",
    )


@pytest.mark.parametrize(
    "library", [None, nvml(nvmlInit=refuse), nvml(nvmlDeviceGetHandleByIndex=refuse)], ids=range(3)
)
def test_without_nvml_nothing_is_said(become, library):
    become(library)
    assert read() == Reading()


def test_what_a_gpu_does_not_tell_is_none(become):
    # GIVEN a GPU without clocks, and a container that hides processes
    names = ("ComputeRunningProcesses", "ClockInfo", "Temperature", "CurrentClocksThrottleReasons")
    become(nvml(**{f"nvmlDeviceGet{name}": refuse for name in names}))
    assert read() == Reading(used_bytes=10, free_bytes=90)


def test_processes_without_a_number_are_left_out(become):
    hidden = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None), SimpleNamespace(pid=1, usedGpuMemory=None)]
    become(nvml(nvmlDeviceGetComputeRunningProcesses=lambda _: hidden))
    reading = read()
    assert reading.own_bytes is None
    assert reading.others_bytes == 0


def test_it_is_shut_down_even_if_it_fails(become):
    closed = []
    become(nvml(nvmlDeviceGetMemoryInfo=refuse, nvmlShutdown=lambda: closed.append(1)))
    assert read() == Reading()
    assert closed == [1]
    assert monitor.THROTTLE_REASONS
