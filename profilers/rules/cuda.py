"""All rules together: while they hold, a fake run on the CPU takes the paths that CUDA would take.

    what CUDA decides                                     here
    which kernels a program's calls become                attention.py, dropout.py, autocast.py, norms.py, rms_norm.py,
                                                          recurrent.py
    how the optimizer goes over its parameters            foreach.py
    what kernels and libraries allocate for themselves    inside.py
    what the program may ask and say                      words.py

Without them, nothing changes: a fake run is then equal to the `cpu` device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from dnnmem.estimator.device import Device
from dnnmem.profilers.rules.attention import attention
from dnnmem.profilers.rules.autocast import cuda_autocast
from dnnmem.profilers.rules.dispatch import kernels
from dnnmem.profilers.rules.dropout import DROPOUT
from dnnmem.profilers.rules.foreach import foreach_by_default
from dnnmem.profilers.rules.gpu import Gpu, gpu_of
from dnnmem.profilers.rules.inside import Inside
from dnnmem.profilers.rules.norms import cuda_norms
from dnnmem.profilers.rules.recurrent import cuda_recurrent
from dnnmem.profilers.rules.rms_norm import RMS_NORM
from dnnmem.profilers.rules.temporaries_transforms import TEMPORARIES as TRANSFORMS
from dnnmem.profilers.rules.words import cuda_words
from dnnmem.profilers.rules.workspaces import Workspaces
from dnnmem.profilers.virtual_gpu.certainty import RECURRENT_MODEL, TRANSFORM_MODEL


class Rules:
    """What holds while the rules do."""

    def __init__(self, gpu: Gpu, workspaces: Workspaces) -> None:
        """`gpu`: whose kernels are assumed; `workspaces`: those of cuDNN."""
        self.gpu = gpu
        self.workspaces = workspaces
        """What convolutions need besides their outputs."""
        self.inside = Inside(gpu, workspaces)
        """For the recorder: adds what kernels allocate for themselves."""
        self.attention: Counter[str] = Counter()
        """How often each attention back-end was taken."""

    def note(self) -> str:
        """What was assumed, in a sentence for people."""
        taken = ", ".join(name for name, _ in self.attention.most_common())
        attended = f", attention by {taken}" if taken else ""
        told = "".join(dict.fromkeys(_TOLD[func] for func in _TOLD if func in self.inside.seen))
        return f"kernels of {self.gpu.name} under CUDA are assumed{attended}{told}"


@contextmanager
def cuda_rules(device: Device, *, cudnn: str = "") -> Iterator[Rules]:
    """Let fake CPU tensors be treated as `device` would treat its own until the context ends.

    `cudnn`: address of the process that knows cuDNN's workspaces (`cudnn_service`); without it they are 0.
    """
    rules = Rules(gpu_of(device), Workspaces(cudnn))
    with ExitStack() as stack:
        stack.enter_context(kernels({**DROPOUT, **RMS_NORM, **attention(rules.gpu.setup, rules.attention)}))
        stack.enter_context(cuda_autocast())
        stack.enter_context(cuda_norms())
        stack.enter_context(foreach_by_default())
        stack.enter_context(cuda_words(device))
        if device.vendor == "nvidia":
            stack.enter_context(cuda_recurrent(rules.gpu))
        yield rules


_TOLD = {
    torch.ops.aten._cudnn_rnn.default: f"; {RECURRENT_MODEL}",
    torch.ops.aten.mkldnn_rnn_layer.default: "; recurrent layers are the CPU's, not the GPU's",
    **dict.fromkeys(TRANSFORMS, f"; {TRANSFORM_MODEL}"),
}
"""What to say of recurrent layers and transforms, by the operator that ran."""
