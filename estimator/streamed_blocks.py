"""Which blocks' parameters rest on the host: what `Offload.parameters` and `Offload.resident` say of a model.

    6 blocks, 2 stay       0  1 [2]  3  4 [5]        those that stay are spread, so that each hides copies of the others

>>> from dnnmem.estimator.plan import Offload
>>> streamed_blocks(Offload(parameters=True, optimizer=True, resident=2), 6)
(0, 1, 3, 4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.segments import parse_segments

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Offload, Plan

ALIGNMENT = 512
"""Bytes: parameters of a block lie in one piece of memory, each at a multiple of this."""


def streamed_blocks(offload: Offload, count: int) -> tuple[int, ...]:
    """Numbers of those that travel, of a model's `count` blocks. Raises `UnsupportedError` where none does."""
    stay = offload.resident
    found = tuple(k for k in range(count) if (k + 1) * stay // count == k * stay // count)
    if not found:
        raise UnsupportedError(
            f"offload.parameters finds {count} blocks in lists, of which offload.resident {stay} stay: none is left to "
            "rest on the host",
            hint="--set offload.parameters=false",
        )
    return found


def check_streaming(plan: Plan) -> None:
    """Raise `UnsupportedError` for what blocks that travel cannot go with."""
    if plan.splits_parameters:
        _check_shards(plan)
        return
    if plan.mesh.world_size > 1:
        raise UnsupportedError(
            f"offload.parameters is for one GPU, or for FSDP2, but {plan.mesh.world_size} GPUs hold whole parameters: "
            "the others would need their gradients before they leave for the host",
            hint="--set sharding.strategy=zero3, or offload.parameters=false",
        )
    if plan.precision.compute == "fp16_amp" or plan.precision.param is not None:
        raise UnsupportedError(
            "offload.parameters cannot be had with fp16's loss scaling, nor with other types at rest",
            hint="--set precision.compute=bf16_amp, or bfloat16",
        )
    if plan.remat.policy == "segments" and any(run.first < run.last for run in parse_segments(plan.remat.segments)):
        raise UnsupportedError(
            f"remat.segments {plan.remat.segments} computes several blocks again as one, but with offload.parameters "
            "one block's parameters are there at a time",
            hint="name single blocks, or --set remat.policy=full",
        )


def _check_shards(plan: Plan) -> None:
    mesh = plan.mesh
    if mesh.pp > 1 or mesh.ep > 1:
        raise UnsupportedError(
            f"offload.parameters with FSDP2 is known for whole models alone; pp is {mesh.pp}, ep {mesh.ep}",
            hint="leave pp and ep 1, or offload.parameters=false",
        )
    if plan.offload.resident:
        raise UnsupportedError(
            f"offload.resident {plan.offload.resident} keeps blocks on the GPU, but FSDP2's policy is for all of them",
            hint="--set offload.resident=0",
        )


def aligned(nbytes: int) -> int:
    """Bytes that a parameter takes of its block's piece.

    >>> aligned(1), aligned(1024)
    (512, 1024)
    """
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
