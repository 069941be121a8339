"""Clusters of unlike GPUs: kinds of equal GPUs side by side, with the slowest of their networks between them.

    a100-80gb:4+h100:4        ranks 0-3 on the first kind, 4-7 on the second

>>> [(part.device.name, part.gpus) for part in find_parts("a100-80gb:4+h100:4")]
[('a100-sxm-80gb', 4), ('h100-sxm-80gb', 4)]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dnnmem.estimator.cluster import Cluster, Link, find_cluster, node_cluster, usual_node
from dnnmem.estimator.errors import UsageError

SIGN = "+"
"""Between kinds in a name."""


def find_parts(name: str) -> tuple[Cluster, ...]:
    """The kinds of the cluster called `name`, one where its GPUs are equal; each knows how many GPUs there are in all.

    Raises `UsageError` for what `find_cluster` does, and for kinds that no network connects.
    """
    words = name.split(SIGN)
    if len(words) == 1:
        return (find_cluster(name),)
    if not all(map(str.strip, words)):
        raise UsageError(f"--cluster {name}: nothing stands on one side of a {SIGN}", hint="a100-80gb:4+h100:4")
    parts = [find_cluster(word.strip()) for word in words]
    network = min((_network(part, name) for part in parts), key=lambda link: link.bytes_per_s)
    per_node = math.gcd(*(part.gpus_per_node for part in parts))
    return tuple(replace(part, gpus_per_node=per_node, across=network) for part in parts)


def whole(part: Cluster, parts: Sequence[Cluster]) -> Cluster:
    """The cluster of all `parts`, as if all GPUs were those of one of them."""
    return replace(part, name=SIGN.join(each.name for each in parts), gpus=sum(each.gpus for each in parts))


def kind_of_ranks(parts: Sequence[Cluster], ranks: int, together: int) -> list[int]:
    """The kind of each of so many runs of `together` ranks. Raises `UsageError` for a run of unlike GPUs."""
    odd = next((part for part in parts if part.gpus % together), None)
    if odd is not None:
        raise UsageError(
            f"{together} ranks go together, but there are {odd.gpus} {odd.device.name}: {odd.gpus} % {together} = "
            f"{odd.gpus % together}",
            hint="change the degrees, so that ranks of a stage or of a tensor-parallel group are on equal GPUs",
        )
    kinds = [k for k, part in enumerate(parts) for _ in range(part.gpus // together)]
    if len(kinds) != ranks:
        raise UsageError(
            f"the plan has {ranks * together} ranks, but {SIGN.join(part.name for part in parts)} has "
            f"{len(kinds) * together} GPUs; on unlike GPUs a plan says what each does",
            hint=f"--set mesh.pp=... or mesh.dp_replicate=..., {len(kinds) * together} in all",
        )
    return kinds


def _network(part: Cluster, name: str) -> Link:
    node = usual_node(part.device)
    link = part.across or (node_cluster(node, part.device, nodes=2).across if node else None)
    if link is None:
        raise UsageError(
            f"--cluster {name}: no network is known that connects {part.device.name} to other nodes",
            hint="describe the nodes and their network in a file of your own: my.toml:NAME",
        )
    return link
