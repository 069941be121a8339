"""Puts into a fake run's log what only a GPU's kernels allocate: temporaries inside operators, and cuBLAS's workspaces.

    op window    outputs, +t1 +t2 -t2 -t1      temporaries have negative numbers and die with their operator
    workspaces   one block for the thread of forward, one for that of backward, from their first product of matrices on

cuBLAS keeps a workspace for each handle and stream, and each thread has a handle of its own: autograd's device thread
does not share the program's. (aten/src/ATen/cuda/CublasHandlePool.cpp)
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
_STAND_INS = frozenset({_aten.mkldnn_rnn_layer.default})
_LAST_FIRST = frozenset({_aten.native_dropout.default})
"""Operators whose kernel allocates its last output first: the mask, by `fused_dropout_kernel` in cuda/Dropout.cu."""


class Inside:
    """Told of each operator by the recorder, when its outputs are noted."""

    def __init__(self, gpu: Gpu) -> None:
        """`gpu`: whose kernels run."""
        self._gpu = gpu
        self.seen: set[Any] = set()
        """Operators that the CPU has in place of CUDA's, and that ran."""
        self._threads: set[bool] = set()

    def __call__(self, log: Log, entry: Entry, func: Any, *call: Any) -> None:
        """Add to `log` what the kernel of `func` allocates itself; `call`: its arguments, keywords and outputs."""
        if func in _PRODUCTS:
            self._product(log, entry)
            return
        if func in _STAND_INS:
            self.seen.add(func)
        if func in _LAST_FIRST:
            log.events[entry.start :] = reversed(log.events[entry.start :])
        find = _TEMPORARIES.get(func)
        if find is None:
            return
        needs = find(self._gpu, *call)
        before = [(n, -i) for i, n in enumerate(needs.before, 1) if n]
        log.events[entry.start : entry.start] = before
        for group in needs.during:
            made = [(n, -i) for i, n in enumerate(group, len(needs.before) + 1) if n]
            log.events.extend(made)
            log.events.extend((-n, i) for n, i in reversed(made))
        log.events.extend((-n, i) for n, i in reversed(before))

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
