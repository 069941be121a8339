"""What in a model's code depends on positions, caught as it is called: attention, positions, losses.

    scaled_dot_product_attention(q, k, v)   over all ranks of the sequence
    arange(T), table[:T], T the rank's      the positions that the rank has, of T * cp
    cross_entropy(T rows, T * cp classes)   of the rank's own classes; the mean over ranks is that of the batch

A loss outside of the model is caught by its logits, `PartOfSequence`.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dnnmem.profilers.apply.context_heads import heads_attention
from dnnmem.profilers.apply.context_ring import ring_attention
from dnnmem.profilers.apply.context_share import Share, refuse


class Listening(TorchFunctionMode):
    """Around a part of the model's code."""

    def __init__(self, share: Share) -> None:
        """Args: `share` knows the lengths of this call."""
        super().__init__()
        self.share = share

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See the module."""
        share, named = self.share, kwargs or {}
        known: dict[Any, Any] = {
            functional.scaled_dot_product_attention: attend,
            functional.cross_entropy: cross_entropy,
        }
        if func in known and not share.attends:
            return known[func](share, *args, **named)
        if func is functional.multi_head_attention_forward:  # torch's own, within which no mode listens
            with patch.object(functional, "scaled_dot_product_attention", lambda *a, **k: attend(share, *a, **k)):
                return func(*args, **named)
        if func is Tensor.__getitem__:
            return self._slice(*args)
        if func is torch.arange and list(args) in ([share.local], [0, share.local]):
            counted: Any = func
            return share.take(counted(*args[:-1], share.whole, **named), 0)
        return func(*args, **named)

    def _slice(self, tensor: Tensor, index: Any) -> Tensor:
        """`table[:T]` of a table of all positions: those of the rank."""
        share = self.share
        found, dim = [], 0
        for at, one in enumerate(index if isinstance(index, tuple) else (index,)):
            if one is Ellipsis:
                break
            first = isinstance(one, slice) and one.start in (None, 0) and one.step is None
            if first and one.stop == share.local and tensor.shape[dim] >= share.whole:
                found.append((at, dim))
            dim += one is not None
        for at, dim in found:
            tensor = share.take(tensor, dim)
            index = (*index[:at], slice(None), *index[at + 1 :]) if isinstance(index, tuple) else slice(None)
        return tensor[index]


def attend(  # noqa: PLR0917 - torch's own signature
    share: Share, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:  # fmt: skip
    """Attention over all ranks. Raises `UnsupportedError` with a mask, which would be a matrix over all positions."""
    if attn_mask is not None:
        raise refuse(
            f"attention is called with a mask of {tuple(attn_mask.shape)}, over the positions of one rank",
            "leave masks out of the batch: sequences are packed or of one length; is_causal needs none",
        )
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    if not query.shape[-2] == key.shape[-2] == share.local:
        raise refuse(
            f"attention of {query.shape[-2]} positions to {key.shape[-2]}, but {share.local} of each sequence of "
            f"{share.whole} are a rank's",
            "it goes with self-attention over inputs (batch, sequence, ...); leave mesh.cp 1",
        )
    share.calls += 1
    share.attends = True
    way = heads_attention if share.method == "ulysses" else ring_attention
    try:
        return way(
            share, query, key, value, dropout=dropout_p, causal=is_causal, scale=scale, gqa=enable_gqa
        )  # fmt: skip
    finally:
        share.attends = False


def cross_entropy(share: Share, input: Tensor, target: Tensor, *args: Any, **named: Any) -> Tensor:  # noqa: A002
    """The cross entropy of this rank's rows, such that its mean over the ranks is that of whole sequences.

    Raises `UnsupportedError` unless there is a class for each position of the sequences, or a sum over them.
    """
    rows, reduction = share.batch * share.local, named.get("reduction", "mean")
    if args or target.numel() != rows * share.ranks or input.dim() != 2 or len(input) != rows:
        raise refuse(
            f"the loss has logits {tuple(input.shape)} for {target.numel()} classes, and not {rows} rows for the "
            f"{rows * share.ranks} positions of {share.batch} sequences of {share.whole}",
            "cross_entropy(logits (rows, classes), labels of whole sequences): shift labels there, and not logits",
        )
    if reduction not in ("mean", "sum") or named.get("weight") is not None:
        raise refuse(f"a loss with reduction {reduction!r} or weights of classes", "take the mean, or the sum")
    own = share.take(target.reshape(-1, share.whole), 1).flatten()
    summed: Tensor = functional.cross_entropy(input, own, **{**named, "reduction": "sum"})
    if reduction == "sum":
        return summed * share.ranks
    counted = (target != named.get("ignore_index", -100)).sum() / share.ranks
    found: Tensor = summed / counted
    return found


class PartOfSequence(Tensor):
    """Logits of a rank's positions, which a loss outside of the model meets with the classes of whole sequences."""

    share: Share

    @classmethod
    def of(cls, tensor: Tensor, share: Share) -> Tensor:
        """The same tensor, knowing whose part it is."""
        found = tensor.as_subclass(cls)
        found.share = share
        return found

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Cross entropy is taken of the rank's classes; what else is made of it is a part too."""
        share = next((x.share for x in args if isinstance(x, cls) and hasattr(x, "share")), None)
        with torch._C.DisableTorchFunctionSubclass():
            if func is functional.cross_entropy and share is not None:
                return cross_entropy(share, *args, **(kwargs or {}))
            found = func(*args, **(kwargs or {}))
        if share is not None and type(found) is Tensor and found.dim() > 1 and not isinstance(found, cls):
            return cls.of(found, share)
        return found
