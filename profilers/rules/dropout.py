"""Dropout as on CUDA: one kernel with a mask of booleans, kept for backward.

Follows `dropout` in torch's aten/src/ATen/native/Dropout.cpp: `is_fused_kernel_acceptable` holds for a CUDA input and
0 < p < 1; else, and for dropout_, alpha_dropout and dropout1d to dropout3d, CUDA and CPU do the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dnnmem.profilers.rules.dispatch import Kernels

_aten = torch.ops.aten


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:  # noqa: FBT001 - the operator's own signature
    if train and 0 < p < 1 and x.numel():
        kept: Tensor = _aten.native_dropout.default(x, p, True)[0]  # noqa: FBT003
        return kept
    if p == 0 or not train or not x.numel():
        return x
    return x * x.new_zeros(())


DROPOUT: Kernels = {("aten::dropout", "AutogradCPU"): _dropout, ("aten::dropout", "CPU"): _dropout}
"""Kernels for `dispatch.kernels`."""
