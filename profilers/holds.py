"""Who holds a tensor: autograd, which keeps it for the backward pass, and the program's own variables.

What autograd saves would die where the last variable lets go of it, if autograd did not save it: in a block that is
computed again it does. Looked at are the frames that led to an operator: variables of functions, and what lies in
tuples, lists and dictionaries of theirs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dnnmem.profilers.record import Recorder

_DEPTH = 2
"""Containers within containers that are looked into."""
_LONGEST = 256
"""Longer ones are not."""


def variables(frame: FrameType | None) -> Iterator[Tensor]:
    """Tensors that variables of `frame` and of its callers hold; some may come more than once."""
    while frame is not None:
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # a function: what it gives is a copy
            values = frame.f_locals
            yield from _tensors(list(values.values()), _DEPTH)
            if type(values) is dict:  # before Python 3.13 the frame keeps the copy, and with it the tensors
                values.clear()
        frame = frame.f_back


def _tensors(values: Any, depth: int) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif depth and isinstance(value, (tuple, list)) and len(value) <= _LONGEST:
            yield from _tensors(value, depth - 1)
        elif depth and isinstance(value, dict) and len(value) <= _LONGEST:
            yield from _tensors(value.values(), depth - 1)


def saved_hooks(recorder: Recorder) -> torch.autograd.graph.saved_tensors_hooks:
    """Hooks that note what autograd keeps; they hand each tensor through.

    A node that keeps its own result, which is the newest one, gets it without its history: else both would keep each
    other alive for ever, if no backward comes.
    """

    def pack(tensor: Tensor) -> Tensor:
        recorder.note_saved(tensor)
        node = tensor.grad_fn
        is_result = node is not None and node._sequence_nr() == torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        return tensor.detach() if is_result else tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
