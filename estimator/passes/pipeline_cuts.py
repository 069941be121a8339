"""Which chunk of a pipeline each block of a model is in.

>>> from dnnmem.estimator.plan import Mesh, Pipeline, Plan
>>> chunk_of_blocks(Plan(mesh=Mesh(pp=2), pipeline=Pipeline(cuts="3")), 2, 4)
[0, 0, 0, 1]
"""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.plan_pipeline import cuts

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan


def chunk_of_blocks(plan: Plan, chunks: int, blocks: int) -> list[int]:
    """The chunk of each of `blocks`, by the plan's cuts or as even as can be.

    Raises `UsageError` for cuts beyond the last block, `UnsupportedError` for a schedule of slices.
    """
    if plan.pipeline.schedule == "terapipe":
        raise UnsupportedError(
            "terapipe passes on slices of a sequence, which cannot be priced from a step recorded with whole ones",
            hint="--set pipeline.schedule=gpipe is a bound",
        )
    if not plan.pipeline.cuts:
        return [b * chunks // blocks for b in range(blocks)]
    firsts = cuts(plan.pipeline.cuts, chunks)
    if firsts[-1] >= blocks:
        raise UsageError(f"pipeline.cuts is {plan.pipeline.cuts!r}, but the model has {blocks} blocks, from 0")
    return [bisect(firsts, b) for b in range(blocks)]
