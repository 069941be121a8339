"""`context`: ranks of one sequence have a part of it each, and do attention together, on the user's model in place.

    inputs (B, T) -> the rank's (B, T / cp) -> model -> logits (B, T / cp, V) -> loss of the rank's own classes
                                 attention: over all ranks, by torch's ring or by all-to-alls (Ulysses)

Each rank of a cp group is given the same whole batch, as those of a tp group are; the loop does not change. Labels stay
whole, since they are shifted over whole sequences. Blocks listen too: what is computed again runs without the model.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from dnnmem.estimator.plan import Loss, Plan
from dnnmem.profilers.apply.context_mode import Listening, PartOfSequence
from dnnmem.profilers.apply.context_ring import ring_of_torch
from dnnmem.profilers.apply.context_share import Share, refuse
from dnnmem.profilers.apply.device_mesh import device_mesh
from dnnmem.profilers.found_blocks import blocks_of
from dnnmem.profilers.tensors import tensors_in

_SHARE = "_dnnmem_share"
"""Attribute of a model that holds what its ranks share."""
_WHOLE = ("labels", "label", "targets", "target", "y")
"""Arguments of a model that stay whole: classes, of which the loss takes the rank's."""


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model`, called with whole sequences, over this rank's part of them; unchanged for `cp` 1.

    Raises `UsageError` without a process group of the plan's size, `UnsupportedError` for what is predicted only; what
    the model's attention and positions are is only known when it runs.
    """
    if plan.mesh.cp == 1:
        return model
    _check(plan)
    mesh = device_mesh(plan)["cp"]
    share = Share(
        rank=mesh.get_local_rank(), ranks=plan.mesh.cp, group=mesh.get_group(), method=plan.context.method
    )  # fmt: skip
    for _, block in blocks_of(model):
        block.forward = _listening(block.forward, share)
    model.forward = _sharing(model, share)
    model.__dict__[_SHARE] = share
    return model


def to_output(model: nn.Module, plan: Plan) -> nn.Module:
    """`model`, whose logits know whose part they are, for a loss in the loop; after what looks at its output."""
    if plan.mesh.cp > 1:
        share = model.__dict__[_SHARE]
        model.register_forward_hook(lambda _, __, output: _output(output, share))
    return model


def _check(plan: Plan) -> None:
    if plan.context.method != "ulysses":
        ring_of_torch()
    if plan.loss != Loss() or plan.tensor.loss_parallel:
        raise refuse(
            "loss.chunks, loss.fused and tensor.loss_parallel are predicted only: logits that wait for the loss are no "
            "part of a sequence",
            "leave them out",
        )
    remat = plan.remat
    if remat.policy == "attention":
        raise refuse("remat.policy attention is predicted only", "--set remat.policy=full, or selective")
    keeps = remat.policy == "selective" and remat.keep_attention
    if (keeps or "attention" in remat.keep) and plan.context.method != "ulysses":
        raise refuse(
            f"remat.policy {remat.policy} that keeps attention is predicted only: of a ring it would keep each round",
            "--set context.method=ulysses, or remat.policy=full",
        )
    if plan.tensor.sequence_parallel:
        raise refuse("tensor.sequence_parallel is predicted only", "--set tensor.sequence_parallel=false")


def _listening(forward: Callable[..., Any], share: Share) -> Callable[..., Any]:
    """A block's forward pass, which listens where the model does not: when it is computed again."""

    @functools.wraps(forward)
    def listening(*args: Any, **kwargs: Any) -> Any:
        if share.listens or not share.whole:
            return forward(*args, **kwargs)
        with _listens(share):
            return forward(*args, **kwargs)

    return listening


@contextmanager
def _listens(share: Share) -> Iterator[None]:
    share.listens = True
    try:
        with Listening(share), _no_packing():
            yield
    finally:
        share.listens = False


def _no_packing() -> Any:
    """Positions that jump are two parts of one sequence, not the two sequences that transformers would see."""
    masks = sys.modules.get("transformers.masking_utils")
    if not hasattr(masks, "find_packed_sequence_indices"):
        return nullcontext()
    return patch.object(masks, "find_packed_sequence_indices", lambda *_, **__: None)


def _sharing(model: nn.Module, share: Share) -> Callable[..., Any]:
    """The model's forward pass over the rank's part of what it is given."""
    forward = model.forward
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def sharing(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        share.start(*_sizes(bound.arguments))
        before = share.calls
        for name, value in bound.arguments.items():
            bound.arguments[name] = value if name in _WHOLE else _part(name, value, share)
        with _listens(share):
            output = forward(*bound.args, **bound.kwargs)
        if share.calls == before:
            raise refuse(
                f"{type(model).__name__} never calls scaled_dot_product_attention, the only attention that ranks can "
                "share",
                "write attention with it (transformers: attn_implementation='sdpa'), or leave mesh.cp 1",
            )
        return output

    return sharing


def _sizes(arguments: dict[str, Any]) -> tuple[int, int]:
    """Sequences, and how long they are, by the first tensor with two dimensions or more: (batch, sequence, ...)."""
    given = [x for one in arguments.values() for x in (one.values() if isinstance(one, dict) else [one])]
    for value in tensors_in(given):
        if value.dim() >= 2:
            return value.shape[0], value.shape[1]
    raise refuse("the model is called without a tensor (batch, sequence, ...)", "--set mesh.cp=1")


def _part(name: str, value: Any, share: Share) -> Any:
    if isinstance(value, dict):  # of **kwargs
        return {key: one if key in _WHOLE else _part(key, one, share) for key, one in value.items()}
    if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[1] != share.whole:
        return value
    if "mask" in name:
        raise refuse(
            f"{name} {tuple(value.shape)} says which positions attend", "leave it out: sequences of one length"
        )  # fmt: skip
    return share.take(value, 1)


def _output(output: Any, share: Share) -> Any:
    """Logits that a loss outside of the model takes."""
    if isinstance(output, Tensor) and output.dim() > 1 and torch.is_grad_enabled():
        return PartOfSequence.of(output, share)
    if isinstance(output, tuple) and type(output) is tuple:
        return tuple(_output(one, share) for one in output)
    return output
