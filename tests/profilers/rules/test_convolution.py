"""The kernel that computes a convolution is the one that torch chose on virtual GPUs (2.14.1, cuDNN 9.24)."""

from __future__ import annotations

import pytest
import torch

from dnnmem.estimator.devices import find_device
from dnnmem.profilers.rules.convolution import Kernel, convolution_of, kernel_of
from dnnmem.profilers.rules.gpu import gpu_of

H100, T4 = "h100-sxm-80gb", "t4"
PLAIN, LAST = torch.contiguous_format, torch.channels_last
HALF, BF16, FLOAT = torch.float16, torch.bfloat16, torch.float32


def chosen(gpu, dtype, layout, x, weight, *, stride=1, dilation=1, groups=1, transposed=False, outer=0):
    axes = len(x) - 2
    made = torch.empty(x, dtype=dtype, device="meta").contiguous(memory_format=layout)
    numbers = ([n] * axes for n in (stride, 1, dilation))
    it = convolution_of(
        made, torch.empty(weight, dtype=dtype, device="meta"), (*numbers, transposed, [outer] * axes, groups)
    )
    return kernel_of(it, gpu_of(find_device(gpu)))


@pytest.mark.parametrize(
    ("gpu", "dtype", "layout", "x", "weight", "options", "kernel"),
    [
        (H100, FLOAT, PLAIN, (4, 64, 56, 56), (128, 64, 3, 3), {}, Kernel.CUDNN),
        (H100, FLOAT, PLAIN, (4, 64, 56, 56), (64, 1, 3, 3), {"groups": 64}, Kernel.DEPTHWISE),
        (H100, FLOAT, LAST, (4, 64, 56, 56), (64, 1, 3, 3), {"groups": 64}, Kernel.CUDNN),
        (H100, HALF, PLAIN, (4, 64, 56, 56), (64, 1, 3, 3), {"groups": 64}, Kernel.CUDNN),
        (H100, BF16, PLAIN, (4, 64, 56, 56), (64, 1, 3, 3), {"groups": 64}, Kernel.DEPTHWISE),
        (H100, HALF, PLAIN, (4, 16, 56, 56), (16, 1, 3, 3), {"groups": 16}, Kernel.DEPTHWISE),
        (H100, HALF, PLAIN, (4, 64, 56, 56), (64, 1, 7, 7), {"groups": 64}, Kernel.DEPTHWISE),
        (H100, HALF, PLAIN, (4, 64, 56, 56), (64, 1, 3, 3), {"groups": 64, "stride": 2}, Kernel.DEPTHWISE),
        (H100, HALF, PLAIN, (4, 512, 14, 14), (512, 1, 3, 3), {"groups": 512, "stride": 2}, Kernel.CUDNN),
        (H100, FLOAT, PLAIN, (4, 32, 8, 14, 14), (32, 1, 3, 3, 3), {"groups": 32}, Kernel.DEPTHWISE),
        (H100, FLOAT, PLAIN, (4, 64, 100), (64, 64, 4), {}, Kernel.CUDNN),
        (H100, FLOAT, PLAIN, (4, 64, 28, 28), (64, 1, 3, 3), {"groups": 64, "transposed": True}, Kernel.CUDNN),
        (H100, FLOAT, PLAIN, (4, 64, 28, 28), (64, 32, 3, 3), {"transposed": True, "outer": 1}, Kernel.SLOW),
        (T4, BF16, PLAIN, (4, 64, 56, 56), (128, 64, 3, 3), {}, Kernel.SLOW),
        (T4, HALF, PLAIN, (4, 64, 56, 56), (128, 64, 3, 3), {}, Kernel.CUDNN),
    ],
)
def test_torchs_choice(gpu, dtype, layout, x, weight, options, kernel):
    assert chosen(gpu, dtype, layout, x, weight, **options) is kernel


def test_cudnn_can_be_switched_off():
    with torch.backends.cudnn.flags(enabled=False):
        assert chosen(H100, FLOAT, PLAIN, (4, 64, 56, 56), (128, 64, 3, 3)) is Kernel.SLOW
