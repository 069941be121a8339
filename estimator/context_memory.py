"""What a PyTorch process uses of a GPU outside its allocator, where nobody has published it: a model of other cards.

The driver keeps a stack for every thread that can be resident, so the context grows with them; the rest is code.
Memory in use less what PyTorch holds, from out-of-memory messages and nvidia-smi (MiB; the sources are in `specs/`):

    card             resident threads   published    the model, fitted without it
    T4               40 * 1024              115             128
    RTX 3080         68 * 1536              257             263
    RTX 3090         82 * 1536              354             300
    V100             80 * 2048              384             393
    RTX 4090        128 * 1536              460             465
    RTX 6000 Ada    142 * 1536              468             519
    A100            108 * 2048              502             522
    RTX 5090        170 * 1536              607             607
    H100            132 * 2048              666             611

Not off by more than 15 %; the interval is 20 %, for cards and releases that were not looked at. Kernels that a program
loads itself, and a CUDA that loads all kernels at once (CUDA_MODULE_LOADING=EAGER), come on top.

>>> low, likely, high = modelled_context(sm_count=142, threads_per_sm=1536)
>>> low // 2**20, likely // 2**20, high // 2**20
(409, 511, 614)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.units import format_bytes

if TYPE_CHECKING:
    from dnnmem.estimator.device import Device

_CODE_BYTES = 31 * 2**20
_THREAD_BYTES = 2312
_SHARE = 0.2
SOURCE = "modelled from the resident threads of cards whose context is published (estimator/context_memory.py)"
"""What stands as evidence where a context is not a published one."""


def modelled_context(*, sm_count: int, threads_per_sm: int) -> tuple[int, int, int]:
    """Low, likely and high bytes for an NVIDIA GPU of so many multiprocessors."""
    likely = _CODE_BYTES + _THREAD_BYTES * sm_count * threads_per_sm
    return round(likely * (1 - _SHARE)), likely, round(likely * (1 + _SHARE))


def context_notes(device: Device) -> list[str]:
    """What is not certain of the context on `device`, in sentences; nothing where it was published."""
    if device.context_bytes is None:
        return [f"the size of the CUDA context on {device.name} is not known, and not counted"]
    if device.context_source != SOURCE or device.context_range_bytes is None:
        return []
    low, likely, high = map(format_bytes, sorted((*device.context_range_bytes, device.context_bytes)))
    why = "nobody has published it, and it follows from that of other cards"
    return [f"the CUDA context on {device.name} is taken to be {likely}, somewhere from {low} to {high}: {why}"]
