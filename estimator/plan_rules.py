"""Which fields of a plan go with which: rules that `plan.check` asks, each with its way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UsageError

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Compression, Gradients, Offload, Plan


def check_cell(plan: Plan) -> None:
    """Raise `UsageError` for calls of a cell where there are no runs of them, or beside what is said of blocks."""
    if not plan.remat.cell:
        return
    if plan.remat.policy != "segments":
        raise UsageError(
            f"remat.cell is {plan.remat.cell!r} under policy {plan.remat.policy}; it goes with policy segments alone",
            hint="--set remat.policy=segments --set remat.segments=0-7,8-15",
        )
    others = (
        ("offload.activations", plan.offload.activations != "none"),
        ("offload.parameters", plan.offload.parameters),
        ("compression.bits", plan.compression.bits is not None),
    )
    for name, is_set in others:
        if is_set:
            raise UsageError(
                f"remat.cell {plan.remat.cell} computes time steps again, beside which {name} is not predicted",
                hint="leave one of them out",
            )


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
    if offload.files and offload.activations == "none":
        raise UsageError(
            "offload.files is set without offload.activations: nothing is sent that could go into files",
            hint="--set offload.activations=all",
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


GRADIENTS = (
    "none", "topk", "dgc", "qsgd", "terngrad", "signsgd", "onebit", "powersgd", "float16", "bfloat16",
)  # fmt: skip
"""Names of `Gradients.compression`."""
_KEEPS = ("topk", "dgc", "signsgd", "onebit", "powersgd")
"""Those that keep what was not sent for the next step."""


def check_gradients(plan: Plan) -> None:
    """Raise `UsageError` unless there are whole gradients of replicas to send otherwise."""
    wanted, sharding, mesh = plan.gradients, plan.sharding, plan.mesh
    _check_values(wanted)
    if wanted.compression == "none" and wanted.local_steps == 1:
        return
    what = f"gradients.compression {wanted.compression}"
    if wanted.local_steps > 1:
        what = f"gradients.local_steps {wanted.local_steps}"
        if wanted.compression != "none":
            raise UsageError(
                f"gradients.compression is {wanted.compression}, but with {what} parameters are sent, not gradients",
                hint="leave one of them out",
            )
    whole = sharding.strategy == "ddp" or (sharding.strategy == "zero1" and not sharding.even_parts)
    if not whole or not sharding.overlap:
        raise UsageError(
            f"{what} goes with buckets of whole gradients, as DistributedDataParallel has them beside the backward "
            f"pass; sharding.strategy is {sharding.strategy}, even_parts {str(sharding.even_parts).lower()}, overlap "
            f"{str(sharding.overlap).lower()}",
            hint="--set sharding.strategy=ddp, with all ranks in mesh.dp_replicate",
        )
    own = "onebit" if wanted.compression == "onebit" else "dgc" if wanted.compression == "dgc" else ""
    if sharding.strategy == "zero1" and (own or wanted.local_steps > 1):
        raise UsageError(f"{what} needs all states of the optimizer on each rank, but zero1 splits them",
                         hint="--set sharding.strategy=ddp")  # fmt: skip
    if wanted.compression in _KEEPS and plan.precision.compute == "fp16_amp":
        raise UsageError(
            f"{what} keeps what was not sent, but fp16_amp scales the gradients of each step by another number",
            hint="--set precision.compute=bf16_amp",
        )
    if wanted.local_steps > 1 and mesh.world_size != mesh.data_ranks:
        raise UsageError(
            f"{what}: replicas that go apart for some steps are whole models, but tp {mesh.tp} * pp {mesh.pp} * cp "
            f"{mesh.cp} ranks share one", hint="leave tp, pp and cp 1",
        )  # fmt: skip


def _check_values(wanted: Gradients) -> None:
    if wanted.compression not in GRADIENTS:
        raise UsageError(f"gradients.compression is {wanted.compression!r}; it is one of {', '.join(GRADIENTS)}")
    if not 0 < wanted.density <= 1:
        raise UsageError(f"gradients.density is {wanted.density}; it is a share, above 0 and at most 1")
    if wanted.bits not in (8, 4, 2):
        raise UsageError(f"gradients.bits is {wanted.bits}; it is 8, 4 or 2")
    for name, least in (("rank", 1), ("local_steps", 1), ("warmup", 2)):
        if getattr(wanted, name) < least:
            raise UsageError(f"gradients.{name} is {getattr(wanted, name)}; it is {least} or more")


def check_sharding(plan: Plan) -> None:
    """Raise `UsageError` unless buckets and gathers are there that the strategy has."""
    sharding = plan.sharding
    if sharding.bucket_views and not (sharding.strategy in ("ddp", "zero1") and sharding.overlap):
        raise UsageError(
            f"sharding.bucket_views lays gradients into the buckets of ddp and zero1 as gradients come; strategy "
            f"is {sharding.strategy}, overlap {str(sharding.overlap).lower()}",
            hint="leave sharding.bucket_views out",
        )
    if sharding.bucket_views and sharding.even_parts:
        raise UsageError("sharding.bucket_views is PyTorch's, whose zero1 has no even_parts", hint="leave one out")
    if sharding.bucket_views and plan.offload.optimizer:
        raise UsageError(
            "sharding.bucket_views leaves no gradients to go to the host one by one, as offload.optimizer sends them",
            hint="leave one of them out",
        )
    gathers = sharding.strategy == "zero3" or (sharding.strategy == "zero2" and not sharding.even_parts)
    if sharding.prefetch < 0 or (sharding.prefetch and not gathers):
        raise UsageError(
            f"sharding.prefetch is {sharding.prefetch} under {sharding.strategy}; it is 0 or more, and above 0 where "
            "groups of parameters are gathered",
            hint="--set sharding.strategy=zero3",
        )


def check_degrees(plan: Plan) -> None:
    """Raise `UsageError` unless the degrees go with what shares them."""
    mesh = plan.mesh
    if plan.sharding.strategy == "none" and mesh.data_ranks > 1:
        raise UsageError(
            f"dp_replicate {mesh.dp_replicate} * dp_shard {mesh.dp_shard} ranks share nothing: "
            "sharding.strategy is none",
            hint="--set sharding.strategy=ddp, zero1, zero2 or zero3",
        )
    if plan.sharding.strategy == "ddp" and mesh.dp_shard > 1:
        raise UsageError(f"ddp shards nothing, but dp_shard is {mesh.dp_shard}", hint="name the ranks dp_replicate")


def check_tensor(plan: Plan) -> None:
    """Raise `UsageError` for asynchronous tensor parallelism without what it sends in pieces."""
    if plan.tensor.async_tp and not plan.tensor.sequence_parallel:
        raise UsageError(
            "tensor.async_tp sends gathers and scatters of parts of the sequence in pieces, but "
            "tensor.sequence_parallel is off",
            hint="--set tensor.sequence_parallel=true",
        )


def check_experts(plan: Plan) -> None:
    """Raise `UsageError` unless the ranks of `ep` are there, and its experts' tokens can be so many."""
    mesh, experts = plan.mesh, plan.experts
    if mesh.dp_shard % mesh.ep:
        raise UsageError(
            f"ep takes its ranks from dp_shard: dp_shard {mesh.dp_shard} % ep {mesh.ep} = {mesh.dp_shard % mesh.ep}, "
            "but it must be 0",
            hint=f"--set mesh.dp_shard={mesh.ep * -(-mesh.dp_shard // mesh.ep)} --set sharding.strategy=zero3",
        )
    if not 1 <= experts.imbalance <= mesh.ep:
        raise UsageError(
            f"experts.imbalance is {experts.imbalance}; the busiest of ep {mesh.ep} ranks has between 1 and {mesh.ep} "
            "times the mean",
            hint="leave experts.imbalance out" if mesh.ep == 1 else "",
        )
    if experts.capacity is not None and experts.capacity <= 0:
        raise UsageError(f"experts.capacity is {experts.capacity}; it is above 0: 1.25 leaves room for a quarter more")
    if mesh.ep > 1 and not plan.splits_parameters:
        raise UsageError(
            f"ep {mesh.ep} splits experts over ranks that share the rest of the parameters as FSDP2 does; "
            f"sharding.strategy is {plan.sharding.strategy}",
            hint="--set sharding.strategy=zero3",
        )


def check_context(plan: Plan) -> None:
    """Raise `UsageError` for two ways at once to split sequences over ranks."""
    if plan.mesh.cp > 1 and plan.pipeline.schedule == "terapipe" and plan.mesh.pp > 1:
        raise UsageError(
            f"terapipe sends parts of a sequence one after the other, but cp {plan.mesh.cp} ranks hold parts of it "
            "side by side",
            hint="--set pipeline.schedule=1f1b, or mesh.cp=1",
        )
