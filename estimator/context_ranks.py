"""Whose gradients meet under context parallelism: the plan that sharding sees, with `cp` in its data axes.

    dp_shard 4, cp 2, zero3   ->   dp_shard 8           parameters are split over both, as in torchtitan
    dp_replicate 4, cp 2, ddp ->   dp_replicate 8       gradients are summed over both
    cp 2, no strategy         ->   dp_replicate 2, ddp  each of cp ranks has gradients of its part of the sequence

A rank's loss counts its own tokens, so that the mean over all of these ranks is that of the batch. `cp` ranks lie
inside of those of the data axes, so that the ranks of the merged axis are the same ones.

>>> from dnnmem.estimator.plan import Mesh, Plan
>>> from_context(Plan(mesh=Mesh(cp=2))).sharding.strategy
'ddp'
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan


def from_context(plan: Plan) -> Plan:
    """`plan` with the ranks of `cp` in `dp_shard`, or in `dp_replicate` where nothing is split; itself without any."""
    mesh, sharding = plan.mesh, plan.sharding
    if mesh.cp == 1:
        return plan
    if sharding.strategy in ("none", "ddp"):
        merged = replace(mesh, dp_replicate=mesh.dp_replicate * mesh.cp, cp=1)
        return replace(plan, mesh=merged, sharding=replace(sharding, strategy="ddp"))
    return replace(plan, mesh=replace(mesh, dp_shard=mesh.dp_shard * mesh.cp, cp=1))
