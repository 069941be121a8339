"""Optimizers take their foreach paths where CUDA's do: all parameters at once, and temporaries for all of them.

Follows `_default_to_fused_or_foreach` in torch/optim/optimizer.py: foreach is the default for native tensors on
devices that `_get_foreach_kernels_supported_devices` lists. What the user chooses (`foreach=False`, `fused=True`)
stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from torch.optim import optimizer, swa_utils
from torch.utils import _foreach_utils


@contextmanager
def foreach_by_default() -> Iterator[None]:
    """Count the CPU among the devices with foreach kernels until the context ends."""
    name = "_get_foreach_kernels_supported_devices"
    devices = ["cpu", *_foreach_utils._get_foreach_kernels_supported_devices()]
    with ExitStack() as stack:
        for module in (_foreach_utils, optimizer, swa_utils):
            if hasattr(module, name):
                stack.enter_context(patch.object(module, name, lambda: devices))
        yield
