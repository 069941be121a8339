"""A published row as something to predict: which step to record, by what plan it ran where, and what was measured.

    row --reader of its source--> Case(target, arguments, batch, layers, plan, cluster, measured ...)  or  a reason

Readers never guess: a row that leaves out what decides its time, or that holds what is not predicted, has a reason.

>>> case = Case(plan=Plan(), measured_seconds=0.5)
>>> case.strategy, case.measured("step_seconds"), case.measured("peak_reserved_bytes")
('one GPU', 0.5, None)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dnnmem.estimator.plan import Plan

METRICS = ("step_seconds", "peak_reserved_bytes", "peak_allocated_bytes")
"""What is measured and predicted."""

GPT = "sample_models/gpt.py"
"""The sample model whose arguments make the transformers of the tables."""

RECORDED_LAYERS = 3
"""Layers that are recorded of a deeper model; the others are repeated."""


class Key(NamedTuple):
    """What is recorded; cases that share it share a trace."""

    target: str
    """As `dnnmem profile` takes it."""
    args: tuple[str, ...]
    """`NAME=VALUE` each."""
    batch: int
    """Samples of a micro-batch on one rank."""
    seq: int | None
    """Tokens of a sample; None = not sequences."""
    optimizer: str
    """For targets that bring none."""
    gpu: str
    """Whose kernels are recorded."""


FLASH: Mapping[str, float] = {"cudnn_attention": 1.0}
"""`Case.rates` of runs whose attention was no kernel of cuDNN's, though torch takes one for them today."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of a table."""

    source: str = ""
    """Table; readers leave this and the next two to `sources.cases`."""
    line: int = 0
    """Line of its file, the header being 1."""
    row: Mapping[str, str] = field(default_factory=dict)
    """Its cells by column."""
    reason: str = ""
    """Why it cannot be predicted; empty if it can."""
    target: str = ""
    """What to record."""
    target_args: tuple[str, ...] = ()
    """`NAME=VALUE` each."""
    batch: int = 1
    """Samples of a micro-batch on one rank."""
    seq: int | None = None
    """Tokens of a sample."""
    layers: int | None = None
    """Blocks of the row's model, if more than are recorded."""
    optimizer: str = "adamw"
    """For targets that bring none of their own."""
    plan: Plan = field(default_factory=Plan)
    """How it ran."""
    allocator: str = ""
    """Settings of PyTorch's allocator, as `PYTORCH_ALLOC_CONF` has them."""
    cluster: str = ""
    """Where, as `--cluster` takes it."""
    gpu: str = ""
    """Name in `specs/`, or what the row says."""
    measured_seconds: float | None = None
    """An optimizer step."""
    out_of_memory: bool = False
    """The run ended so."""
    measured_reserved_bytes: int | None = None
    """Peak of the caching allocator."""
    measured_allocated_bytes: int | None = None
    """Peak of live bytes."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Parameters of the time model that are known of its software."""

    @property
    def key(self) -> Key:
        """What to record for it."""
        return Key(self.target, self.target_args, self.batch, self.seq, self.optimizer, self.gpu)

    @property
    def strategy(self) -> str:
        """Its ways to use many GPUs and to recompute, in words: `ddp + tp + 1f1b, full recompute`."""
        plan, mesh = self.plan, self.plan.mesh
        parts = [
            f"hsdp {plan.sharding.strategy}" * (mesh.dp_replicate > 1 and mesh.dp_shard > 1)
            or plan.sharding.strategy * (mesh.data_ranks > 1),
            f"cp {plan.context.method}" * (mesh.cp > 1),
            "tp" * (mesh.tp > 1) + " sp" * (mesh.tp > 1 and plan.tensor.sequence_parallel),
            plan.pipeline.schedule * (mesh.pp > 1),
        ]
        ways = " + ".join(part for part in parts if part) or "one GPU"
        return ways + f", {plan.remat.policy} recompute" * (plan.remat.policy != "none")

    def measured(self, metric: str) -> float | None:
        """What was measured of one of `METRICS`; None = nothing."""
        values = (self.measured_seconds, self.measured_reserved_bytes, self.measured_allocated_bytes)
        return dict(zip(METRICS, values, strict=True))[metric]


def decoder(*, layers: int, heads: int, width: int, **others: object) -> tuple[tuple[str, ...], int | None]:
    """Arguments of `GPT` for a published decoder, and its layers if fewer are recorded.

    >>> decoder(layers=32, heads=8, width=64, bias=False)
    (('layers=3', 'heads=8', 'width=64', 'bias=false'), 32)
    """
    recorded = min(layers, RECORDED_LAYERS)
    given = {"layers": recorded, "heads": heads, "width": width, **others}
    words = (f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items())
    return tuple(words), layers if layers > recorded else None
