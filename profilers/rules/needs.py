"""What a kernel allocates besides its outputs, as bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dnnmem.profilers.rules.gpu import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Temporaries of one operator; all die with it."""

    before: tuple[int, ...] = ()
    """Made before the outputs, such as contiguous copies of inputs; they live until the operator ends."""
    beside: tuple[int, ...] = ()
    """Made after the outputs; they live until the operator ends."""
    during: Sequence[tuple[int, ...]] = ()
    """Made after those: the ones of a group live together, one group after the other."""
    order: tuple[int, ...] = ()
    """Numbers of the outputs in the order in which they are made, if that is not their own; too many do no harm."""
    outputs: Sequence[Needs] = ()
    """Where outputs are made one after the other, by kernels of their own: what each of these needs, in that order."""
    count: int = 1
    """Of one of `outputs`: how many outputs it makes."""


Find = Callable[[Gpu, Any, Any, Any], Needs]
"""Called with the GPU, the operator's arguments, its keywords and its outputs."""
