"""Puts into a fake run's log what only a GPU's kernels allocate: temporaries inside operators, and cuBLAS's workspaces.

    op window    outputs, +t1 +t2 -t2 -t1      temporaries have negative numbers and die with their operator
    workspaces   one block for the thread of forward, one for that of backward, from their first product of matrices on

cuBLAS keeps a workspace for each handle and stream, and each thread has a handle of its own: autograd's device thread
does not share the program's. (aten/src/ATen/cuda/CublasHandlePool.cpp)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch

from dnnmem.estimator.build import WORKSPACE
from dnnmem.estimator.trace import Kind
from dnnmem.profilers.record import Block, Entry, Log
from dnnmem.profilers.rules.gpu import Gpu
from dnnmem.profilers.rules.needs import Find, Needs
from dnnmem.profilers.rules.recurrent_cells import TEMPORARIES as _CELLS
from dnnmem.profilers.rules.recurrent_operators import TEMPORARIES as _RECURRENT
from dnnmem.profilers.rules.temporaries_attention import TEMPORARIES as _ATTENTION
from dnnmem.profilers.rules.temporaries_convolution import temporaries
from dnnmem.profilers.rules.temporaries_kernels import TEMPORARIES as _KERNELS
from dnnmem.profilers.rules.temporaries_transforms import TEMPORARIES as _TRANSFORMS
from dnnmem.profilers.rules.workspaces import Workspaces

_aten = torch.ops.aten
_PRODUCTS = frozenset(
    {_aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.baddbmm.default, _aten.mv.default}
)
_TOLD = frozenset({_aten.mkldnn_rnn_layer.default, _aten._cudnn_rnn.default, *_TRANSFORMS})


class Inside:
    """Told of each operator by the recorder, when its outputs are noted."""

    def __init__(self, gpu: Gpu, workspaces: Workspaces) -> None:
        """`gpu`: whose kernels run; `workspaces`: those of cuDNN."""
        self._gpu = gpu
        self._temporaries: dict[Any, Find] = {
            **_ATTENTION,
            **_KERNELS,
            **_RECURRENT,
            **_CELLS,
            **_TRANSFORMS,
            **temporaries(workspaces),
        }
        self.seen: set[Any] = set()
        """Operators that ran and that a report tells of: recurrent layers, cuDNN's or the CPU's, and transforms."""
        self._threads: set[bool] = set()

    def __call__(self, log: Log, entry: Entry, func: Any, *call: Any) -> None:
        """Add to `log` what the kernel of `func` allocates itself; `call`: its arguments, keywords and outputs."""
        if func in _PRODUCTS:
            self._product(log, entry)
            return
        if func in _TOLD:
            self.seen.add(func)
        find = self._temporaries.get(func)
        if find is not None:
            made = log.events[entry.start :]
            log.events[entry.start :] = _in_order(find(self._gpu, *call), made, count(-1, -1))

    def _product(self, log: Log, entry: Entry) -> None:
        in_backward = entry.place.node is not None
        if in_backward in self._threads:
            return
        self._threads.add(in_backward)
        number = len(log.blocks)
        nbytes = self._gpu.workspace_bytes
        index = len(log.entries) - 1
        log.blocks[number] = Block(nbytes, (), "", index, kind=Kind.TEMP, module=entry.place.module, name=WORKSPACE)
        log.events.append((nbytes, number))


def _in_order(needs: Needs, outputs: list[tuple[int, int]], names: Iterator[int]) -> list[tuple[int, int]]:
    """All events of an operator, or of one output of it: those of its `outputs`, and of temporaries called `names`."""
    outputs = [outputs[i] for i in needs.order if i < len(outputs)] or outputs
    before = [(n, next(names)) for n in needs.before if n]
    events = list(before)
    if sum(part.count for part in needs.outputs) == len(outputs):
        for part in needs.outputs:
            events += _in_order(part, outputs[: part.count], names)
            outputs = outputs[part.count :]
    else:
        events += outputs
    beside = [(n, next(names)) for n in needs.beside if n]
    events += beside
    for group in needs.during:
        made = [(n, next(names)) for n in group if n]
        events += [*made, *((-n, name) for n, name in reversed(made))]
    return [*events, *((-n, name) for n, name in reversed(before + beside))]
