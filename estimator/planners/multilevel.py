"""Two tiers of checkpoints: inputs of runs rest on the GPU, or on the host or a disk, which hold any number of them.

    Aupy, Herrmann, Hovland and Robert 2016      GPU memory    few checkpoints, free to reach
                                                 host, disk    all others; writing and reading cost time

Theirs waits for each copy. Here a checkpoint leaves while the next run goes forward, and is back before it is needed:
only what does not hide costs time. It is POFO's table in which nothing but inputs of runs travels, and exact.
"""

from __future__ import annotations

from dataclasses import replace

from dnnmem.estimator.cluster import Cluster, Link
from dnnmem.estimator.passes.offload_optimizer import DISK_BYTES_PER_S
from dnnmem.estimator.planners import rotor_planner
from dnnmem.estimator.planners.pofo_planner import schedules
from dnnmem.estimator.planners.problem import Found, Problem, cheapest
from dnnmem.estimator.planners.solve import Planner


def find(problem: Problem) -> Found:
    """The fastest with the host as second tier, or Rotor's, which need none."""
    tried = [*schedules(problem, tapes=False), *rotor_planner.plans(problem)]
    return cheapest(problem, tried, what="two tiers of checkpoints")


def find_on_disk(problem: Problem) -> Found:
    """The fastest with a disk as second tier, or Rotor's."""
    slow = problem.once("on disk", lambda: replace(problem, cluster=_disk(problem), known={}, made={}))
    tried = [*map(_in_files, schedules(slow, tapes=False)), *rotor_planner.plans(problem)]
    return cheapest(problem, tried, what="two tiers of checkpoints")


def _in_files(found: Found) -> Found:
    return replace(found, offload=replace(found.offload, files=True)) if found.offload.blocks else found


def _disk(problem: Problem) -> Cluster:
    """The machine whose copies go to a drive, which the GPUs of the node share."""
    cluster, host = problem.cluster, problem.cluster.host
    rate = DISK_BYTES_PER_S / cluster.gpus_per_node
    link = Link(
        name="disk", bytes_per_s=rate * cluster.host_gpus / problem.model.pcie, latency_seconds=host.latency_seconds,
        source="estimator/passes/offload_optimizer.py",
    )  # fmt: skip
    return replace(cluster, host=link)


_NEEDS = "a chain of blocks"
PLANNERS = (
    Planner(
        name="multilevel", words="checkpoints on the GPU and on the host (Aupy et al. 2016)", needs=f"{_NEEDS}, a host",
        find=find,
    ),
    Planner(
        name="multilevel-disk", words="checkpoints on the GPU and on a disk (Aupy et al. 2016)",
        needs=f"{_NEEDS}, a disk", find=find_on_disk,
    ),
)  # fmt: skip
