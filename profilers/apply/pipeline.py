"""Pipelines for real: the schedules that PyTorch has, over stages of the user's own model and training loop.

    1f1b, dapple   Schedule1F1B                  zb_h1       ScheduleInterleavedZeroBubble, one stage a rank
    gpipe          ScheduleGPipe                 zbv         ScheduleZBVZeroBubble
    interleaved    ScheduleInterleaved1F1B       dualpipev   ScheduleDualPipeV

A step takes as many micro-batches as `batch.accumulation` says; gradients are divided by that number, so that they are
those of one batch where the loss is a mean. Each stage may be shared by data ranks once it is cut (FSDP2, DDP, ZeRO-1),
in torchtitan's order: its gradients stay whole until the last micro-batch, and are then reduced. Gradients of tied
embeddings are added up between the first stage and the last. The loop's code up to `loss.backward()` runs for each
micro-batch; then comes the optimizer, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import pipelining
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.pipeline_cuts import chunk_of_blocks
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_pipeline import SPLITS
from dnnmem.estimator.schedules import SCHEDULES
from dnnmem.profilers.apply import experts, sharding, tensor
from dnnmem.profilers.apply.device_mesh import device_mesh, device_type
from dnnmem.profilers.apply.pipeline_shapes import inputs_of
from dnnmem.profilers.apply.pipeline_stage import Stage, cut_model
from dnnmem.profilers.found_blocks import blocks_of

_ONE: Mapping[str, Any] = {
    "1f1b": pipelining.Schedule1F1B,
    "dapple": pipelining.Schedule1F1B,
    "gpipe": pipelining.ScheduleGPipe,
}
_SEVERAL: Mapping[str, Any] = {
    "interleaved": pipelining.ScheduleInterleaved1F1B,
    "zb_h1": pipelining.ScheduleInterleavedZeroBubble,
    "zbv": pipelining.ScheduleZBVZeroBubble,
    "dualpipev": getattr(pipelining, "ScheduleDualPipeV", None),
}
"""By name: of one stage a rank, and of a list of them."""


class Pipelined:
    """A rank of a pipeline."""

    def __init__(self, model: nn.Module, plan: Plan, loop: Callable[..., object], batch: Any) -> None:
        """Keep of `model` what is this rank's. `loop(model, batch, optimizer)` is the step of a training loop.

        `batch` is a micro-batch, for its shapes. Raises `UnsupportedError` for what PyTorch does not do.
        """
        check_pipeline(plan)
        self._batches: list[Any] = []
        ranks, chunks = plan.mesh.pp, plan.mesh.pp * plan.pipeline.chunks
        self._group = device_mesh(plan)["pp"].get_group()
        rank = distributed.get_rank(self._group)
        mine = SCHEDULES[plan.pipeline.schedule](ranks, plan.batch.accumulation, plan.pipeline.chunks).stages
        forward = partial(_forward, loop)
        blocks = [block for _, block in blocks_of(model)]
        passed = inputs_of(blocks, model, forward, batch)  # before matrices are split: what passes is whole
        if passed is not None and plan.precision.compute == "bfloat16":  # FSDP2 casts as blocks are called
            passed = [one.bfloat16() if one.is_floating_point() else one for one in passed]
        tensor.to_model(model, plan)
        experts.to_model(model, plan)
        self._cut = cut_model(model, partial(chunk_of_blocks, plan, chunks), mine[rank])
        firsts = [sum(map(len, self._cut.names[:c])) for c in range(chunks)]
        self._between = None if passed is None else [passed[first] for first in firsts]
        ends = {r for r, row in enumerate(mine) if {0, chunks - 1} & {*row}}
        self._pair = _pair(plan, sorted(ends)) if self._cut.tied and len(ends) == 2 else None
        self._holds_tied = rank in ends
        self._stages = [Stage(self._cut, chunk, forward, self._batches) for chunk in mine[rank]]
        for stage in self._stages:
            sharding.to_model(stage, plan)
            stage.listen()
        self.model = model
        self._plan, self._mine = plan, mine[rank]
        self._schedule: Any = None

    def step(self, batches: Sequence[Any], optimizer: Optimizer) -> Tensor | None:
        """One optimizer step on as many micro-batches as the plan has; their mean loss where the last stage is."""
        m = self._plan.batch.accumulation
        if self._schedule is None:
            self._schedule = self._made(m)
        self._batches[:] = batches
        numbers = torch.arange(m)
        last = len(self._cut.names) - 1
        given = (numbers,) if 0 in self._mine else ()
        losses: list[Tensor] = []
        wanted = {"target": numbers, "losses": losses} if last in self._mine else {}
        self._schedule.step(*given, microbatch=numbers, return_outputs=False, **wanted)
        self._batches.clear()
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(m)
        self._add_tied()
        loss = torch.stack([one.detach() for one in losses]).mean() if losses else None
        losses.clear()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def _add_tied(self) -> None:
        """Add up gradients of what the first stage and the last one share; none is held on to."""
        for module, name in self._cut.tied if self._pair is not None and self._holds_tied else ():
            grad = getattr(module, name).grad
            distributed.all_reduce(grad.to_local() if isinstance(grad, DTensor) else grad, group=self._pair)

    def _made(self, m: int) -> Any:
        """The schedule, once the parameters lie where they are to be."""
        name = self._plan.pipeline.schedule
        device = torch.device(device_type())
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        stages = [self._stage(stage, chunk, device) for stage, chunk in zip(self._stages, self._mine, strict=True)]
        made, held = (_ONE[name], stages[0]) if name in _ONE else (_SEVERAL[name], stages)
        return made(held, m, loss_fn=_as_it_is, scale_grads=False)  # what two stages share would be scaled twice

    def _stage(self, stage: Stage, chunk: int, device: torch.device) -> Any:
        if isinstance(stage, FSDPModule):
            found_again: Any = stage._apply  # its own parameters may have got memory meanwhile
            found_again(lambda tensor: tensor)
        count = len(self._cut.names)
        static: dict[str, Any] = {}
        if self._between is not None:
            static = {
                "input_args": self._between[chunk] if chunk else torch.zeros(1, dtype=torch.int64),
                "output_args": self._between[chunk + 1] if chunk < count - 1 else torch.zeros(()),
            }
            for example in static.values():
                example.requires_grad_(example.is_floating_point())
        run = sharding.replica_of(stage) or stage
        return pipelining.PipelineStage(run, chunk, count, device, group=self._group, **static)


def check_pipeline(plan: Plan) -> None:
    """Raise `UnsupportedError` for a pipeline that is predicted only."""
    schedule, mesh = plan.pipeline.schedule, plan.mesh
    if {**_ONE, **_SEVERAL}.get(schedule) is None:
        raise UnsupportedError(
            f"pipeline.schedule {schedule} can be estimated, but PyTorch does not have it",
            hint=f"it has {', '.join((*_ONE, *_SEVERAL))}",
        )
    if mesh.cp > 1 or (mesh.tp > 1 and plan.tensor.sequence_parallel):
        raise UnsupportedError(
            f"cp {mesh.cp} or parts of sequences beside pp {mesh.pp} can be estimated, but pipelines are applied "
            "alone, with data and expert parallelism and with plain tensor parallelism so far",
            hint="--set tensor.sequence_parallel=false, cp 1",
        )
    if mesh.data_ranks > 1 and schedule in SPLITS:
        raise UnsupportedError(
            f"{schedule} over {plan.sharding.strategy} can be estimated, but not applied: gradients of weights that "
            "PyTorch takes by themselves do not reach what sends them",
            hint="pipeline.schedule=1f1b, gpipe or interleaved",
        )
    if plan.offload.activations != "none" or plan.offload.optimizer:
        raise UnsupportedError("offload beside pp can be estimated, but not applied yet", hint="leave offload out")


def _pair(plan: Plan, ends: Sequence[int]) -> Any:
    """The group of this rank's first and last stage; all ranks make all groups."""
    found: Any = None
    for column in device_mesh(plan).mesh.reshape(plan.mesh.pp, -1).T.tolist():
        group = distributed.new_group([column[r] for r in ends])
        found = group if distributed.get_rank() in column else found
    return found


def _as_it_is(loss: Tensor, target: Tensor) -> Tensor:
    """What the last stage hands over is the loss."""
    del target
    return loss


def _forward(loop: Callable[..., object], model: Any, batch: Any) -> object:
    return loop(model, batch, _Idle())


class _Idle:
    """An optimizer that a loop may call before its backward pass."""

    param_groups: Sequence[dict[str, Any]] = ()

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002  (torch's signature)
        """Gradients go when the pipeline's step is done."""

    def step(self) -> None:
        """The pipeline's step makes it."""
