"""How long a message between GPUs takes: NCCL's ring and tree, by size, inside a node and across nodes.

    ring     t = steps * hop + wire + ramp               wire = bytes through one GPU's link / rate
             all_reduce 2 (n-1) steps and 2 (n-1)/n of the bytes; all_gather, reduce_scatter half of each
    tree     t = 2 (k-1 + log2 nodes) * hop + wire + ramp          all_reduce, k ranks in a node: 2 of the bytes in the
             node (1 + 1/k and 4 hops where its switch adds up), 2 of them over the network (1 between two nodes)
    ramp     c * sqrt(hops * wire): a message flows in chunks; few chunks fill the ring late, many pay each hop

NCCL takes the fastest (src/graph/tuning.cc of NVIDIA/nccl), and so does this. The rate is that of a GPU's link, or the
network's share of the group where that is less: all cards of a node carry the traffic of all its groups, so k ranks in
a node have k shares. What every call costs besides is the time model's: launch, and ranks that wait for each other.

>>> from dnnmem.estimator.cluster import find_cluster
>>> from dnnmem.estimator.time_model import load
>>> node = find_cluster("dgx-a100")
>>> model = load(node.device)
>>> group = Group(size=8, per_node=8)
>>> reduce, gather = (collective_seconds(kind, 2**30, group, node, model) for kind in ("all_reduce", "all_gather"))
>>> 1.8 < reduce / gather < 2.1
True
>>> collective_seconds("all_reduce", 2**30, Group(size=1, per_node=1), node, model)
0.0
"""

from __future__ import annotations

import math
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


_RAMP = 1.4
"""Weight of the ramp; like the two below found on the 8-GPU A100 table of Hetu-Galvatron (1 MB to 1 GB, 66 times)."""
_PAIR = 0.70
"""What two GPUs that only speak with each other reach of the rate of a ring."""
_PAIRS = 0.87
"""What GPUs reach that all speak with each other at once."""


def group_of(mesh: Mesh, axis: str, cluster: Cluster) -> Group:
    """The group of rank 0 along `axis`. Raises `UsageError` for one that is no axis.

    Besides `AXES`: `dp`, both data axes together; `ep`, neighbours of `dp_shard` that share experts;
    `dp_shard_mod_ep`, ranks of it that hold the same ones.
    """
    inner = mesh.tp * mesh.cp
    others = {
        "dp": (mesh.data_ranks, inner),
        "ep": (mesh.ep, inner),
        "dp_shard_mod_ep": (mesh.dp_shard // mesh.ep, inner * mesh.ep),
    }
    if axis in others:
        size, stride = others[axis]
    elif axis in AXES:
        size, stride = getattr(mesh, axis), math.prod(getattr(mesh, name) for name in AXES[: AXES.index(axis)])
    else:
        raise UsageError(f"{axis!r} is no axis of the mesh; it is one of {', '.join((*AXES, *others))}")
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
    if nodes > 1:
        return model.network_latency_seconds + _route(kind, nbytes, group, cluster, model)
    return _inside(cluster, model)[1] + _route(kind, nbytes, group, cluster, model)


def _inside(cluster: Cluster, model: TimeModel) -> tuple[float, float]:
    """Rate of one GPU's link, and what every message costs besides."""
    pcie = cluster.inside.name.startswith("pcie")
    share, fixed = (model.pcie, model.pcie_latency_seconds) if pcie else (model.nvlink, model.nvlink_latency_seconds)
    return share * cluster.inside.bytes_per_s, fixed


def _route(kind: str, nbytes: float, group: Group, cluster: Cluster, model: TimeModel) -> float:
    """Seconds of the fastest algorithm."""
    # n ranks, k of them in a node; a hop and a rate inside a node (near) and between nodes (far)
    n, k = group
    nodes, share = -(-n // k), (n - 1) / n
    hop, near = cluster.inside.latency_seconds, _inside(cluster, model)[0]
    far_hop, far = hop, math.inf
    if cluster.across and nodes > 1:
        far_hop, far = cluster.across.latency_seconds, model.network * cluster.across.bytes_per_s
    if kind == "send":
        return _flow(far_hop, nbytes / min(_PAIR * near, far))
    if kind == "all_to_all":
        return _flow(far_hop, max(nbytes * share / ((_PAIR if n == 2 else _PAIRS) * near), nbytes * (n - k) / n / far))
    steps, rate = (n - nodes) * hop + (nodes - 1) * far_hop, min(near, k * far)
    if kind == "broadcast":
        return _flow(steps, nbytes / rate)
    if kind != "all_reduce":
        return _flow(steps, nbytes * share / rate)
    ring = _flow(2 * steps, 2 * nbytes * share / rate)
    summed = cluster.inside.reduces and k > 1
    depth = 2 * ((2 if summed else k - 1) * hop + math.ceil(math.log2(nodes)) * far_hop)
    inside, across = nbytes * (1 + 1 / k if summed else 2) / near, nbytes * min(2, nodes - 1) / (k * far)
    return min(ring, _flow(depth, max(inside, across)))


def _flow(latency: float, wire: float) -> float:
    """A message that takes `wire` seconds at full rate, in chunks through hops of `latency` in all."""
    return latency + wire + _RAMP * math.sqrt(latency * wire)
