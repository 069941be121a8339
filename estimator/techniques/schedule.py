"""In what order stages take micro-batches: 1F1B, or what waits less, for more chunks or memory or other gradients."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_pipeline import CHUNKS, SPLITS
from dnnmem.estimator.schedules import ALTERS
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 22
GROUP = "pp"

_CHUNKS, _MOST_CHUNKS = (2, 3, 4, 6, 8), 9
"""Chunks of a rank under the interleaved schedule; and the most of them among thousands of GPUs, where every number is
looked at: one may deal the blocks evenly."""
_MANY = 1024
"""GPUs from which that is so."""
_WHY = {
    "interleaved": "gives each stage {chunks} chunks of blocks, so that the first micro-batch passes sooner",
    "zb_h1": "makes gradients of weights while stages would wait",
    "zbv": "deals blocks down the stages and up again, and makes gradients of weights while stages would wait",
    "dualpipev": "deals blocks down the stages and up again, and runs a forward beside a backward pass",
}
FILE = "schedule"
"""What `--allow` calls all that alter training."""
_NAMED = ("zb_h1", "zbv", "dualpipev", "gpipe", "chimera", "dualpipe", "gems", *ALTERS)
"""Those that are searched where they are asked for: they need more memory, PyTorch has none, or they alter training."""
NAMES = (*_WHY, *_NAMED)


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """1F1B; or another schedule that these stages and micro-batches can have."""
    rows = [Technique(name="")]
    pp, m = plan.mesh.pp, plan.batch.accumulation
    if pp == 1:
        return rows
    asked = scope.allow | scope.only
    if m % pp == 0:
        chunks_of = range(2, _MOST_CHUNKS + 1) if scope.cluster.gpus >= _MANY else _CHUNKS
        rows += [_row("interleaved", chunks) for chunks in chunks_of if pp * chunks <= scope.blocks]
    alone = plan.mesh.data_ranks == 1  # what sends gradients waits for those of weights, which come by themselves
    named = [name for name in _NAMED if name in asked or (FILE in asked and name in ALTERS)]
    named = [name for name in named if alone or name not in SPLITS]
    return [*rows, *(_row(name) for name in named if _can(name, pp, m, scope.blocks))]


def _can(name: str, pp: int, m: int, blocks: int) -> bool:
    if name in ("zbv", "dualpipev"):
        return 2 * pp <= blocks and (name == "zbv" or m >= 2 * pp)
    if name == "chimera":
        return not pp % 2 and not m % pp
    if name == "dualpipe":
        return not pp % 2 and not m % 2 and m >= 2 * pp
    return name != "2bw" or m >= pp


def _row(name: str, chunks: int = 1) -> Technique:
    chunks = CHUNKS.get(name, chunks)
    words = f"interleaved, {chunks} chunks a stage" if name == "interleaved" else name.replace("_", "-").upper()
    return Technique(
        name=name, settings=(f"pipeline.schedule={name}", f"pipeline.chunks={chunks}"), words=words,
        why=_WHY.get(name, f"orders micro-batches as {name} does").format(chunks=chunks), alters=ALTERS.get(name, ""),
    )  # fmt: skip
