"""How many bytes the forward pass leaves for the backward pass, counted by PyTorch itself on a real CPU run.

Definition. `torch.autograd.graph.saved_tensors_hooks` sees every tensor that autograd saves. Of those still saved when
the loss is there, count the storages behind them: each once, however many views of it are saved, and each whole, since
a saved view keeps all of its storage alive. Left out are the storages of parameters and buffers (trained or not) and of
the batch, which live anyway.

What a custom function keeps as an attribute instead of saving it is not counted, nor is what only a Python variable
keeps. A region under non-reentrant checkpointing saves its inputs only; what it computes again is not there.
"""

from __future__ import annotations

import weakref

import torch
from torch.utils._pytree import tree_leaves


class _Packed:
    """A saved tensor, in an object that dies with the graph node that saved it."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()


def saved_bytes(model, batch, forward_loss):
    """Bytes saved for backward at the end of `forward_loss(model, batch)`, as defined above."""
    packed = []

    def pack(tensor):
        kept = _Packed(tensor)
        packed.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss = forward_loss(model, batch)  # keeps the graph alive
    alive = [kept.tensor.untyped_storage() for ref in packed if (kept := ref()) is not None]
    saved = {storage.data_ptr(): storage.nbytes() for storage in alive}
    owned = [*model.parameters(), *model.buffers(), *(x for x in tree_leaves(batch) if isinstance(x, torch.Tensor))]
    lives_anyway = {tensor.untyped_storage().data_ptr() for tensor in owned}
    del loss
    return sum(nbytes for address, nbytes in saved.items() if address not in lives_anyway)
