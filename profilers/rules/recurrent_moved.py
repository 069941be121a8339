"""What the move of recurrent weights to a GPU leaves in its allocator: a block for each, freed for the one of all.

+w_ih +w_hh +b_ih +b_hh ... +block -w_ih -w_hh ...      what was freed serves again, in segments that are reserved
"""

from __future__ import annotations

from torch import nn

from dnnmem.estimator.trace import Kind
from dnnmem.profilers.record import Block, Log


def moved(log: Log, model: nn.Module) -> None:
    """Put the moves of all weights that lie in one block into `log`, whose storages of the model are named already."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.RNNBase):
            continue
        sizes = [weight.nbytes for weight in module.parameters(recurse=False)]
        path = tuple(name.split(".")) if name else ()
        for index, (nbytes, number) in enumerate(log.events):
            block = log.blocks[number]
            if block.kind is Kind.PARAM and block.module == path and nbytes >= sum(sizes):
                log.events[index : index + 1] = _moves(log, sizes, (nbytes, number))
                break


def _moves(log: Log, sizes: list[int], block: tuple[int, int]) -> list[tuple[int, int]]:
    made = []
    for nbytes in sizes:
        number = len(log.blocks)
        log.blocks[number] = Block(nbytes, (), "", -1, died=0)
        made.append((nbytes, number))
    return [*made, block, *((-nbytes, number) for nbytes, number in made)]
