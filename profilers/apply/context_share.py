"""Which positions of a sequence a rank has, and what else the ranks of one sequence must know of each other.

    4 ranks   all_gather, ring   rank 0: 0 7   1: 1 6   2: 2 5   3: 3 4     of 8 parts two each: causal work is equal
              ulysses            rank 0: 0     1: 1     2: 2     3: 3       attention sees all of it, in order

>>> Share(rank=1, ranks=4, group=None, method="ring").parts(16)
((2, 4), (12, 14))
>>> Share(rank=1, ranks=4, group=None, method="ulysses").parts(16)
((4, 8),)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.context_sizes import check_length


@dataclass(slots=True, kw_only=True, eq=False)
class Share:
    """One rank's part of the sequences that a model is called with; changes with each call."""

    rank: int
    """Number in the group."""
    ranks: int
    """Ranks of the group."""
    group: Any
    """The process group."""
    method: str
    """`Context.method`."""
    batch: int = 0
    """Sequences of the last call."""
    whole: int = 0
    """Their length."""
    listens: bool = False
    """True while a mode looks for what depends on positions."""
    attends: bool = False
    """True within attention over all ranks."""
    calls: int = 0
    """Attentions so far."""

    @property
    def local(self) -> int:
        """Positions of this rank."""
        return self.whole // self.ranks

    def start(self, batch: int, length: int) -> None:
        """A call with `batch` sequences of `length`. Raises `UnsupportedError` for what ranks cannot share."""
        check_length(length, self.ranks, self.method)
        self.batch, self.whole = batch, length

    def parts(self, length: int) -> tuple[tuple[int, int], ...]:
        """First and last + 1 of the positions that it has."""
        if self.method == "ulysses":
            size = length // self.ranks
            return ((self.rank * size, (self.rank + 1) * size),)
        size, last = length // (2 * self.ranks), 2 * self.ranks - 1 - self.rank
        return ((self.rank * size, (self.rank + 1) * size), (last * size, (last + 1) * size))

    def take(self, tensor: Tensor, dim: int) -> Tensor:
        """The rank's part along `dim`, which begins with the whole sequence: a view, or a copy of two parts."""
        found = [tensor.narrow(dim, first, last - first) for first, last in self.parts(self.whole)]
        return found[0] if len(found) == 1 else torch.cat(found, dim)


def refuse(what: str, way_out: str) -> UnsupportedError:
    """An error of something that ranks of one sequence cannot do."""
    return UnsupportedError(f"context parallelism: {what}", hint=way_out)
