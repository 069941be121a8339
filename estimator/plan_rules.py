"""Which fields of a plan go with which: rules that `plan.check` asks, each with its way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UsageError

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Compression, Offload, Plan


def check_offload(offload: Offload) -> None:
    """Raise `UsageError` unless what rests on the host can."""
    if (offload.activations == "blocks") != bool(offload.blocks):
        raise UsageError(
            f"offload.blocks is {offload.blocks!r} under activations {offload.activations}; blocks go with activations "
            "blocks, and with no other",
            hint="--set offload.activations=blocks --set offload.blocks=0-3,7",
        )
    for name in ("parameters", "disk"):
        if getattr(offload, name) and not offload.optimizer:
            raise UsageError(
                f"offload.{name} is set without offload.optimizer: what rests on the host is updated there",
                hint="--set offload.optimizer=true",
            )
    if offload.resident < 0 or (offload.resident and not offload.parameters):
        raise UsageError(
            f"offload.resident is {offload.resident}; it is 0 or more, and above 0 with offload.parameters only"
        )


def check_compression(compression: Compression) -> None:
    """Raise `UsageError` unless groups fill bytes and the share is one."""
    if compression.group < 8 or compression.group % 8:
        raise UsageError(f"compression.group is {compression.group}; it is a multiple of 8")
    if compression.projection is not None and not 0 < compression.projection < 1:
        raise UsageError(f"compression.projection is {compression.projection}; it is a share, above 0 and below 1")


def check_degrees(plan: Plan) -> None:
    """Raise `UsageError` unless the degrees go with what shares them."""
    mesh, chunks = plan.mesh, plan.pipeline.chunks
    if plan.sharding.strategy == "none" and mesh.data_ranks > 1:
        raise UsageError(
            f"dp_replicate {mesh.dp_replicate} * dp_shard {mesh.dp_shard} ranks share nothing: "
            "sharding.strategy is none",
            hint="--set sharding.strategy=ddp, zero1, zero2 or zero3",
        )
    if plan.sharding.strategy == "ddp" and mesh.dp_shard > 1:
        raise UsageError(f"ddp shards nothing, but dp_shard is {mesh.dp_shard}", hint="name the ranks dp_replicate")
    if (chunks > 1) != (plan.pipeline.schedule == "interleaved"):
        raise UsageError(
            f"pipeline.chunks is {chunks} under {plan.pipeline.schedule}; interleaved has 2 or more, the others 1"
        )
    if plan.pipeline.schedule == "interleaved" and mesh.pp == 1:
        raise UsageError("interleaved needs pp of 2 or more; mesh.pp is 1")
