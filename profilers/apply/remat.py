"""Rematerialization done: blocks keep their input, or some of what they make, and run again in the backward pass.

full, every, segments     runs of blocks under torch's checkpoint
selective                 blocks under torch's selective checkpoint: products and attention are kept, as the pass says
ops                       the same with the ops that the plan names
attention                 each scaled dot product attention of a block under a checkpoint of its own
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest.mock import patch

from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    set_checkpoint_early_stop,
)

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.keep_text import is_attention
from dnnmem.estimator.passes.remat import PRODUCTS
from dnnmem.estimator.plan import Plan, Remat
from dnnmem.estimator.segments import Run, parse_segments
from dnnmem.profilers.apply.regions import compute_again, compute_calls_again, no_contexts
from dnnmem.profilers.apply.remat_ops import keep_ops, selective_contexts
from dnnmem.profilers.found_blocks import blocks_of


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` with its blocks computed again as `plan.remat` says; names and state stay as they are.

    Raises `UnsupportedError` for a model without blocks in a list, and `UsageError` for segments that it does not have.
    """
    remat = plan.remat
    if remat.policy == "none":
        return model
    if remat.cell:
        return _calls_again(model, remat)
    blocks = blocks_of(model)
    if not blocks:
        raise UnsupportedError(
            f"remat.policy {remat.policy} finds nothing to compute again in {type(model).__name__}: "
            "it needs blocks in a list (ModuleList, Sequential)",
            hint="--set remat.policy=none",
        )
    _without_cache(model)
    if remat.policy == "attention":
        for name, block in blocks:
            block.forward = partial(_attending_again, block.forward, name, remat.early_stop)
        return model
    if remat.policy == "ops":
        keep_ops(blocks, remat)
        return model
    contexts = partial(_selective, remat.keep_attention) if remat.policy == "selective" else no_contexts
    compute_again(blocks, _runs(remat, len(blocks), plan), contexts=contexts, early_stop=remat.early_stop)
    return model


def _calls_again(model: nn.Module, remat: Remat) -> nn.Module:
    """Raises `UsageError` for a cell that the model does not have."""
    if remat.cell not in dict(model.named_modules()):
        raise UsageError(f"remat.cell is {remat.cell!r}, but {type(model).__name__} has no such module")
    compute_calls_again(model, remat.cell, parse_segments(remat.segments), early_stop=remat.early_stop)
    return model


def _runs(remat: Remat, count: int, plan: Plan) -> tuple[Run, ...]:
    if remat.policy != "segments":
        every = remat.every if remat.policy == "every" else 1
        return tuple(Run(first=k, last=k) for k in range(every - 1, count, every))
    runs = parse_segments(remat.segments, count)
    if plan.sharding.strategy == "zero3" and any(run.first < run.last for run in runs):
        raise UnsupportedError(
            f"remat.segments {remat.segments} computes several blocks again as one, but zero3 gathers their "
            "parameters block by block, before the backward pass of each",
            hint="name single blocks, or --set remat.policy=full",
        )
    return runs


def _without_cache(model: nn.Module) -> None:
    """Keys and values kept for generation would be appended a second time; transformers turns them off as well."""
    config = getattr(model, "config", None)
    if getattr(config, "use_cache", False) is True:
        config.use_cache = False  # type: ignore[union-attr]


def _selective(keep_attention: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:  # noqa: FBT001
    """The contexts of one block's computations: each counts its products."""
    products = {False: 0, True: 0}

    def policy(context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        name = str(operator)
        if name in PRODUCTS:
            products[context.is_recompute] += 1
            if products[context.is_recompute] % 2:
                return CheckpointPolicy.MUST_SAVE
        elif keep_attention and is_attention(name):
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return selective_contexts(policy)


_ATTENTION = functional.scaled_dot_product_attention


class _AttentionAgain(TorchFunctionMode):
    """Puts each scaled dot product attention under a checkpoint."""

    def __init__(self, *, early_stop: bool) -> None:
        super().__init__()
        self.early_stop = early_stop
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.multi_head_attention_forward:  # torch's own, within which no mode listens
            with patch.object(functional, "scaled_dot_product_attention", self._again):
                return func(*args, **(kwargs or {}))
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._again(*args, **(kwargs or {}))

    def _again(self, *args: Any, **kwargs: Any) -> Any:
        self.seen += 1
        with set_checkpoint_early_stop(self.early_stop):
            return checkpoint(_ATTENTION, *args, use_reentrant=False, **kwargs)


def _attending_again(forward: Any, name: str, early_stop: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001
    with _AttentionAgain(early_stop=early_stop) as mode:
        output = forward(*args, **kwargs)
    if not mode.seen:
        raise UnsupportedError(
            f"remat.policy attention finds no scaled_dot_product_attention in {name}",
            hint="--set remat.policy=selective, or full",
        )
    return output
