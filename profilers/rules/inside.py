"""Puts into a fake run's log what only a GPU's kernels allocate: temporaries inside operators, and cuBLAS's workspaces.

    op window    outputs, +t1 +t2 -t2 -t1      temporaries have negative numbers and die with their operator
    workspaces   one block for the thread of forward and one for that of backward, from their first product of matrices on

cuBLAS keeps a workspace for each handle and stream, and each thread has a handle of its own: autograd's device thread does
not share the program's. (aten/src/ATen/cuda/CublasHandlePool.cpp)
"""

from __future__ import annotations

from typing import Any

import torch

from dnnmem.estimator.build import WORKSPACE
from dnnmem.estimator.trace import Kind
from dnnmem.profilers.record import Block, Entry, Log
from dnnmem.profilers.rules.gpu import Gpu
from dnnmem.profilers.rules.temporaries_attention import TEMPORARIES as _ATTENTION
from dnnmem.profilers.rules.temporaries_kernels import TEMPORARIES as _KERNELS

_aten = torch.ops.aten
_PRODUCTS = frozenset(
    {_aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.baddbmm.default, _aten.mv.default}
)
_TEMPORARIES = {**_ATTENTION, **_KERNELS}
_SMALLEST = 4096
_LAST_FIRST = frozenset({_aten.native_dropout.default})
"""Operators whose kernel allocates its last output first: the mask, by `fused_dropout_kernel` in cuda/Dropout.cu."""


class Inside:
    """Told of each operator by the recorder, when its outputs are noted."""

    def __init__(self, gpu: Gpu) -> None:
        """`gpu`: whose kernels run."""
        self._gpu = gpu
        self._threads: set[bool] = set()

    def __call__(self, log: Log, entry: Entry, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Add to `log` what the kernel of `func` allocates besides `out`."""
        if func in _PRODUCTS:
            self._product(log, entry)
            return
        if func in _LAST_FIRST:
            log.events[entry.start :] = reversed(log.events[entry.start :])
        find = _TEMPORARIES.get(func)
        if find is None:
            return
        for group in find(self._gpu, args, kwargs, out):
            sizes = [n for n in group if n >= _SMALLEST]
            log.events.extend((n, -i) for i, n in enumerate(sizes, 1))
            log.events.extend((-n, -i) for i, n in reversed(list(enumerate(sizes, 1))))

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
