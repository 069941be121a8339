"""timm's training benchmark: images per second of its models under mixed precision on one GPU, and the batch that fits.

The columns name no GPU and no memory format; the file does: benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv. A step is
the benchmark's own: zero_grad, forward under fp16 autocast, cross entropy, backward, SGD with momentum, no loss scale.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator.validation.case import Case
from dnnmem.estimator.validation.cells import positive, whole

COLUMNS = ("train_samples_per_sec", "train_step_time", "train_batch_size", "train_img_size")
"""What marks the table."""

TARGET = "sample_models/timm_classifier.py"
"""The benchmark's step, for any model of timm."""
LAYOUTS = ("nhwc", "nchw")
"""Memory formats, as file names have them."""
_GPUS = {"rtx3090": "rtx-3090-24gb", "rtx4090": "rtx-4090-24gb"}


def read(row: Mapping[str, str], file: str) -> Case:
    """The case of one row of `file`, a file name."""
    gpu = next((name for word, name in _GPUS.items() if word in file), "")
    layout = next((word for word in LAYOUTS if word in file), "")
    milliseconds = positive(row, "train_step_time")
    seconds = None if milliseconds is None else milliseconds / 1e3
    if not gpu or not layout:
        reason = f"the name of {file} tells no GPU ({', '.join(_GPUS)}) and layout (nchw, nhwc), nor do its columns"
        return Case(reason=reason, measured_seconds=seconds)
    args = (f"name={row['model']}", f"image={whole(row, 'train_img_size')}")
    return Case(
        gpu=gpu, target=TARGET,
        target_args=(*args, "channels_last=true") if layout == "nhwc" else args,
        batch=whole(row, "train_batch_size"), cluster=f"{gpu}:1", measured_seconds=seconds,
    )  # fmt: skip
