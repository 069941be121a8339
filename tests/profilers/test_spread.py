"""Work on several workers: results as they come, errors at once, engines that are not there named."""

from __future__ import annotations

import sys
import threading

import pytest

from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.spread import spread


def test_a_result_comes_while_another_job_still_runs():
    # GIVEN a first job that ends only after the second one's result was read
    read = threading.Event()

    def work(job):
        assert job == 1 or read.wait(60)
        return job * 10

    # THEN the second one's result comes first, each under its index
    results = spread(work, [0, 1], workers=2)
    assert next(results) == (1, 10)
    read.set()
    assert list(results) == [(0, 0)]


def test_whoever_stops_reading_stops_the_work():
    begun = []
    results = spread(begun.append, list(range(50)), workers=1)
    next(results)
    results.close()
    assert len(begun) < 50


def test_an_error_of_a_job_is_raised():
    def work(job):
        raise ValueError(job)

    with pytest.raises(ValueError, match="7"):
        list(spread(work, [7]))


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_an_engine_that_is_not_installed_is_named(executor, package, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(UsageError, match=package) as caught:
        list(spread(str, [1], executor=executor))
    assert caught.value.hint == f"pip install {package}"


@pytest.mark.parametrize(
    ("options", "says"), [({"executor": "slurm"}, "slurm is unknown"), ({"workers": 0}, "0 workers")]
)
def test_what_cannot_be_is_refused(options, says):
    with pytest.raises(UsageError, match=says):
        spread(str, [1], **options)
