"""Periodic checkpointing: runs of k blocks each keep the input of their first (Chen, Xu, Zhang, Guestrin 2016).

With equal blocks the memory is least near k = sqrt(blocks). It is what Rotor is compared with.
"""

from __future__ import annotations

from dnnmem.estimator.planners.chain import Chain
from dnnmem.estimator.segments import Run


def periodic(chain: Chain, length: int) -> tuple[Run, ...]:
    """Runs of up to `length` blocks over the whole chain; where one does not follow the other, a run ends early."""
    found: list[Run] = []
    for stage in chain.stages:
        block = stage.block
        if block is None:
            continue
        if found and stage.follows and found[-1].last == block - 1 and block - found[-1].first < length:
            found[-1] = Run(first=found[-1].first, last=block)
        else:
            found.append(Run(first=block, last=block))
    return tuple(found)
