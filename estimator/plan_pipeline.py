"""What a plan may say of pipelines: names of schedules, chunks a rank holds, and where the model is cut.

>>> cuts("8,20", 3)
(8, 20)
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UsageError

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan

PIPELINES = (
    "1f1b", "dapple", "gpipe", "interleaved", "zb_h1", "zbv", "dualpipe", "dualpipev", "chimera", "gems", "varuna",
    "terapipe", "pipedream", "2bw", "pipemare", "hetpipe",
)  # fmt: skip
"""Names of `Pipeline.schedule`, each a file of `schedules`."""
TORCH = frozenset({"1f1b", "dapple", "gpipe", "interleaved", "zb_h1", "zbv", "dualpipev"})
"""Those that PyTorch has."""
SPLITS = frozenset({"zb_h1", "zbv", "dualpipev"})
"""Those in which gradients of weights may come later than those of inputs."""
FOLDED = frozenset({"zbv", "dualpipev"})
"""Those whose first rank has the first stage and the last."""
CHUNKS: Mapping[str, int] = {"zbv": 2, "dualpipev": 2}
"""Chunks a rank holds where that is not one; `interleaved` takes any number from two."""


def cuts(text: str, chunks: int) -> tuple[int, ...]:
    """First blocks of all chunks but the first. Raises `UsageError` unless they rise, and are as many as wanted."""
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"pipeline.cuts is {text!r}; it is first blocks of chunks, such as 8,16,24")
    found = tuple(int(word) for word in words)
    if len(found) != chunks - 1 or any(a >= b for a, b in pairwise((0, *found))):
        raise UsageError(
            f"pipeline.cuts is {text!r}; {chunks} chunks (pp * chunks) begin at {chunks - 1} rising blocks besides 0"
        )
    return found


def has_buffers(plan: Plan) -> bool:
    """True if stages hold messages as PyTorch's do."""
    return plan.mesh.pp > 1 and plan.pipeline.buffers and plan.pipeline.schedule in TORCH


def reduces_at_end(plan: Plan) -> bool:
    """True if stages are sharded by FSDP2: they keep whole gradients, and reduce them after a step's last backward."""
    return plan.mesh.pp > 1 and plan.splits_parameters


def check_pipeline(plan: Plan) -> None:
    """Raise `UsageError` unless stages, chunks and what the schedule needs agree."""
    pipeline, pp = plan.pipeline, plan.mesh.pp
    schedule, chunks = pipeline.schedule, pipeline.chunks
    if schedule not in PIPELINES:
        raise UsageError(f"pipeline.schedule is {schedule!r}; it is one of {', '.join(PIPELINES)}")
    if schedule == "interleaved":
        if chunks < 2:
            raise UsageError(f"pipeline.chunks is {chunks} under interleaved; interleaved has 2 or more")
        if pp == 1:
            raise UsageError("interleaved needs pp of 2 or more; mesh.pp is 1")
    elif chunks != (wanted := CHUNKS.get(schedule, 1)):
        hint = "pipeline.schedule=interleaved has several" if wanted == 1 else f"--set pipeline.chunks={wanted}"
        raise UsageError(f"pipeline.chunks is {chunks} under {schedule}, which has {wanted} a rank", hint=hint)
    if schedule == "varuna" and plan.remat.policy != "full":
        raise UsageError(
            f"varuna keeps the inputs of stages and runs forwards again, but remat.policy is {plan.remat.policy}",
            hint="--set remat.policy=full",
        )
    if schedule in SPLITS and pp > 1 and plan.remat.policy != "none":
        raise UsageError(
            f"{schedule} goes without recomputation, but remat.policy is {plan.remat.policy}: PyTorch computes a block "
            "again for each part of its backward pass, and keeps what each made",
            hint="--set remat.policy=none, or pipeline.schedule=1f1b",
        )
    if pipeline.cuts:
        cuts(pipeline.cuts, pp * chunks)
