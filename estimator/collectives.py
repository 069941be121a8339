"""How long a message between GPUs takes: NCCL's ring and tree, by size, inside a node and across nodes.

    ring    t = steps * hop + bytes on the wire / rate + ramp                    steps = 2 (n-1) for all_reduce, n-1 else
    tree    t = 2 (k-1 + log2 nodes) * hop + 2 * bytes / rate + ramp             all_reduce only, k ranks in a node
    ramp    c * sqrt(steps * hop * bytes / rate): a message flows in chunks; few chunks fill the ring late, many pay each hop

Each comes in NCCL's three protocols (src/graph/tuning.cc of NVIDIA/nccl): `LL` has short hops and a quarter of the rate,
`LL128` (NVLink only) 120/128 of it, `Simple` all. NCCL takes the fastest, and so does this. The rate is the smaller of
a GPU's link and the network's share of the group: all cards of a node carry all groups, so k ranks in a node have k shares.

>>> from dnnmem.estimator.cluster import find_cluster
>>> from dnnmem.estimator.time_model import load
>>> node = find_cluster("dgx-a100")
>>> model = load(node.device)
>>> group = Group(size=8, per_node=8)
>>> collective_seconds("all_reduce", 2**30, group, node, model) > collective_seconds("all_gather", 2**30, group, node, model)
True
>>> collective_seconds("all_reduce", 2**30, Group(size=1, per_node=1), node, model)
0.0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.errors import InternalError, UsageError
from dnnmem.estimator.plan import Mesh
from dnnmem.estimator.time_model import TimeModel

KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "broadcast", "send")
"""What `collective_seconds` prices, and the `<kind>` of an op `dnnmem.<kind>.<axis>`."""

AXES = ("tp", "cp", "dp_shard", "dp_replicate", "pp")
"""Axes of the mesh from the one whose ranks are neighbours outwards."""


class Group(NamedTuple):
    """Ranks that speak with each other."""

    size: int
    """All of them."""
    per_node: int
    """Those of them that share a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Protocol:
    """One of NCCL's ways to move a chunk, as shares of what `Simple` has."""

    start_seconds: float
    inside_hop: float
    across_hop: float
    rate: float


_LL = _Protocol(start_seconds=3.6e-6, inside_hop=0.15, across_hop=0.28, rate=0.25)
_LL128 = _Protocol(start_seconds=10e-6, inside_hop=0.56, across_hop=0.42, rate=0.92)
_SIMPLE = _Protocol(start_seconds=8.4e-6, inside_hop=1.0, across_hop=1.0, rate=1.0)
_RAMP = 0.5


def group_of(mesh: Mesh, axis: str, cluster: Cluster) -> Group:
    """The group of rank 0 along `axis`, which may be `dp`: both data axes together. Raises `UsageError` for another."""
    if axis == "dp":
        size, stride = mesh.data_ranks, mesh.tp * mesh.cp
    elif axis in AXES:
        size, stride = getattr(mesh, axis), math.prod(getattr(mesh, inner) for inner in AXES[: AXES.index(axis)])
    else:
        raise UsageError(f"{axis!r} is no axis of the mesh; it is one of {', '.join(AXES)} or dp")
    return Group(size=size, per_node=max(1, min(size, cluster.gpus_per_node // stride)))


def collective_seconds(kind: str, nbytes: float, group: Group, cluster: Cluster, model: TimeModel) -> float:
    """Seconds of one message of `nbytes`: the gathered output, the input to scatter, the buffer to reduce, the payload.

    Raises `UsageError` for a group over nodes that nothing connects, `InternalError` for an unknown kind.
    """
    if kind not in KINDS:
        raise InternalError(f"no collective is called {kind!r}; known: {', '.join(KINDS)}")
    n, k = group
    if n <= 1 or nbytes <= 0:
        return 0.0
    nodes = -(-n // k)
    if nodes > 1 and cluster.across is None:
        raise UsageError(
            f"a group of {n} ranks spans {nodes} nodes, but {cluster.name} has {cluster.gpus} GPUs in one node",
            hint="name more GPUs: --cluster GPU:NUMBER",
        )
    fixed = model.network_latency_seconds if nodes > 1 else _inside(cluster, model)[1]
    return fixed + min(_route(kind, nbytes, n, k, protocol, cluster, model) for protocol in _protocols(cluster))


def _protocols(cluster: Cluster) -> tuple[_Protocol, ...]:
    return (_LL, _SIMPLE) if cluster.inside.name.startswith("pcie") else (_LL, _LL128, _SIMPLE)


def _inside(cluster: Cluster, model: TimeModel) -> tuple[float, float]:
    """Rate of one GPU's link, and what every message costs besides."""
    pcie = cluster.inside.name.startswith("pcie")
    share, fixed = (model.pcie, model.pcie_latency_seconds) if pcie else (model.nvlink, model.nvlink_latency_seconds)
    return share * cluster.inside.bytes_per_s, fixed


def _route(kind: str, nbytes: float, n: int, k: int, protocol: _Protocol, cluster: Cluster, model: TimeModel) -> float:
    """Seconds by one protocol and the faster of its algorithms."""
    nodes = -(-n // k)
    hop = protocol.inside_hop * cluster.inside.latency_seconds
    far = protocol.across_hop * cluster.across.latency_seconds if cluster.across and nodes > 1 else 0.0
    near_rate = protocol.rate * _inside(cluster, model)[0]
    far_rate = protocol.rate * model.network * cluster.across.bytes_per_s if cluster.across and nodes > 1 else math.inf
    ring_rate = min(near_rate, k * far_rate)
    start, share = protocol.start_seconds, (n - 1) / n
    if kind == "send":
        return start + _flow(hop if nodes == 1 else far, nbytes / min(near_rate, far_rate))
    if kind == "all_to_all":
        remote = (n - k) / n
        wire = max(nbytes * share / near_rate, nbytes * remote / far_rate)
        return start + _flow(hop if nodes == 1 else far, wire)
    steps = (n - nodes) * hop + (nodes - 1) * far
    if kind in ("all_gather", "reduce_scatter"):
        return start + _flow(steps, nbytes * share / ring_rate)
    if kind == "broadcast":
        return start + _flow(steps, nbytes / ring_rate)
    ring = _flow(2 * steps, 2 * nbytes * share / ring_rate)
    depth = 2 * ((k - 1) * hop + math.ceil(math.log2(nodes)) * far)
    twice = max(2 * nbytes / near_rate, min(2, nodes - 1) * nbytes / (k * far_rate))
    return start + min(ring, _flow(depth, twice))


def _flow(latency: float, wire: float) -> float:
    return latency + wire + _RAMP * math.sqrt(latency * wire)
