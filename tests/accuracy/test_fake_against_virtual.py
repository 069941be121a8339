"""A fake run for a GPU needs what torch's CUDA build needs on it.

The numbers were recorded on a virtual GPU under torch 2.14.1+cu130 with small tensors computed: bytes that torch
requested at the peak of the third step, and what its caching allocator reserved. cuBLAS's workspaces are given apart,
since they would hide the rest of such small steps. cuDNN's workspaces were counted as 0 there.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Origin
from dnnmem.profilers.fake import profile_fake
from tests.models.entry import plain_step
from tests.models.zoo import ZOO
from tests.profilers.recorded import target_of

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
RECORDED = [
    line.split()
    for line in (Path(__file__).parent / "data" / "virtual_peaks.txt").read_text().splitlines()
    if not line.startswith("#")
]
RMS_NORMS = ("llama", "t5")


def under_autocast(kind, forward_loss, model, batch):
    with torch.autocast("cuda", kind):
        return forward_loss(model, batch)


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: "-".join(row[:4]))
def test_peaks_are_torchs_own(row):
    # GIVEN what a step requested and reserved on the GPU
    gpu, name, batch, amp, *numbers = row
    workspace, peak, reserved = map(int, numbers)
    if name in RMS_NORMS and not hasattr(torch.ops.aten, "_fused_rms_norm"):
        pytest.skip("this torch has no kernel for root-mean-square norms")
    entry = ZOO[name]
    step = (
        entry.train_step if amp == "-" else partial(plain_step, partial(under_autocast, TYPES[amp], entry.forward_loss))
    )
    # WHEN the same step runs on FakeTensors for that GPU
    torch.manual_seed(0)
    target = target_of(entry.make_model, entry.make_batch, step, entry.make_optimizer, batch_size=int(batch))
    trace, _ = profile_fake(target, steps=3, origin=Origin(gpu=gpu), on_step=lambda _: None)
    # THEN its tensors need the same within 2 %, and the allocator within 5 %
    assert abs(trace.peak_bytes() - peak) <= 0.02 * (peak - workspace)
    assert abs(replay_trace(trace).peak_reserved_bytes - reserved) <= 0.05 * reserved
