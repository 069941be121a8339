"""What replicas send each other instead of whole gradients: it changes training, and is searched only by name."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 15
FILE = "gradients"
"""What `--allow` calls all of them."""


def _way(name: str, settings: tuple[str, ...], why: str, alters: str) -> Technique:
    chosen = tuple(f"gradients.{setting}" for setting in settings)
    return Technique(name=name, settings=chosen, words=why, why=f"sends {why}", alters=alters)


_LATE = "what is not sent arrives later"
_ROWS = (
    _way("gradients-bf16", ("compression=bfloat16",), "gradients in bf16", "gradients rounded to 8 bits"),
    _way("gradients-fp16", ("compression=float16",), "gradients in fp16", "gradients rounded to 11 bits"),
    _way("qsgd", ("compression=qsgd",), "gradients in 8 bits (QSGD)", "gradients are noisy"),
    _way("terngrad", ("compression=terngrad",), "gradients in 2 bits (TernGrad)", "gradients are very noisy"),
    _way("signsgd", ("compression=signsgd",), "signs of gradients, with memory", _LATE),
    _way("onebit-adam", ("compression=onebit",), "signs of first moments (1-bit Adam)",
         f"second moments rest, and {_LATE}"),
    _way("topk", ("compression=topk",), "the largest 1 % of gradients, with memory", _LATE),
    _way("dgc", ("compression=dgc",), "the largest 1 % of momentum, with memory (DGC)", _LATE),
    _way("powersgd", ("compression=powersgd", "rank=4"), "gradients as products of rank 4 (PowerSGD)", _LATE),
    _way("local-sgd", ("local_steps=8",), "parameters after each 8th step (local SGD)",
         "replicas go apart between averages"),
)  # fmt: skip
NAMES = tuple(row.name for row in _ROWS)


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """Whole gradients; or, under DDP, those ways that are asked for."""
    rows = [Technique(name="")]
    asked = scope.allow | scope.only
    if FILE not in scope.fields or plan.sharding.strategy != "ddp" or plan.mesh.dp_replicate == 1:
        return rows
    return [*rows, *(row for row in _ROWS if asked & {FILE, row.name})]
