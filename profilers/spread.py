"""Independent pieces of work on several workers: processes of this machine, or those of Ray or Dask.

    spread(function, jobs, workers=2, executor="process")     ->  (index of a job, its result), as they come

`process` runs `function` in threads: what is spread here starts a process of its own for each piece. `ray` and `dask`
send function and jobs to a cluster, whose machines need dnnmem too; `RAY_ADDRESS` and Dask's own configuration say
which. Imports no torch.

>>> sorted(spread(str.upper, ["a", "b"], workers=2))
[(0, 'A'), (1, 'B')]
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from dnnmem.estimator.errors import UsageError

J = TypeVar("J")
R = TypeVar("R")

EXECUTORS = ("process", "ray", "dask")
"""Names of what runs the pieces."""


def spread(
    function: Callable[[J], R], jobs: Sequence[J], *, workers: int = 2, executor: str = "process"
) -> Iterator[tuple[int, R]]:
    """Results of `function` for all jobs, each with the index of its job, in the order in which they are done.

    Args: at most `workers` run at once. What `function` raises is raised here, and what has not begun then never does;
    the same if the caller stops early. Raises `UsageError` for an executor that is unknown or not installed.
    """
    if workers < 1:
        raise UsageError(f"{workers} workers do no work; it takes 1 or more")
    if executor not in EXECUTORS:
        raise UsageError(f"--executor {executor} is unknown; known: {', '.join(EXECUTORS)}")
    runs = {"process": _on_threads, "ray": _on_ray, "dask": _on_dask}
    return runs[executor](function, jobs, workers)


def _on_threads(function: Callable[[J], R], jobs: Sequence[J], workers: int) -> Iterator[tuple[int, R]]:
    pool = ThreadPoolExecutor(workers)
    try:
        running = {pool.submit(function, job): index for index, job in enumerate(jobs)}
        for done in as_completed(running):
            yield running[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _on_ray(function: Callable[[J], R], jobs: Sequence[J], workers: int) -> Iterator[tuple[int, R]]:
    ray = _library("ray", "ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    remote = ray.remote(num_cpus=1)(function)
    left = list(enumerate(jobs))
    running: dict[Any, int] = {}
    try:
        while left or running:
            while left and len(running) < workers:
                index, job = left.pop(0)
                running[remote.remote(job)] = index
            [done], _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done), ray.get(done)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _on_dask(function: Callable[[J], R], jobs: Sequence[J], workers: int) -> Iterator[tuple[int, R]]:
    dask = _library("dask.distributed", "distributed")
    address = _library("dask", "distributed").config.get("scheduler-address", None)
    client = dask.Client(address) if address else dask.Client(n_workers=workers, threads_per_worker=1)
    with client:
        running = {client.submit(function, job, pure=False): index for index, job in enumerate(jobs)}
        for done in dask.as_completed(list(running)):
            yield running[done], done.result()


def _library(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        executor = name.partition(".")[0]
        raise UsageError(
            f"--executor {executor} needs {package}, which is not installed", hint=f"pip install {package}"
        ) from None
