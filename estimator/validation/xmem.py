"""Runs that the authors of xMem measured with NVML on one GPU: fp32, a few iterations at a batch that about fits.

What the GPU held before the run is left out of their peak, so it compares with reserved memory. Some of their models
tell 10 classes apart, the others 1000; images are 86 pixels wide, texts 128 words long.
"""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator.validation.case import Case
from dnnmem.estimator.validation.cells import positive, whole

COLUMNS = ("ground_truth_peak_bytes", "real_oom", "optimizer", "batch", "gpu_total_bytes")
"""What marks the table."""

_MODELS = {
    "MnasNet": ("torchvision:mnasnet1_0", 10), "RegNetY400MF": ("torchvision:regnet_y_400mf", 1000),
    "VGG16": ("torchvision:vgg16", 1000), "VGG19": ("torchvision:vgg19", 1000),
    "ResNet101": ("torchvision:resnet101", 1000), "ResNet152": ("torchvision:resnet152", 1000),
    "MobileNetV2": ("torchvision:mobilenet_v2", 1000), "MobileNetV3Small": ("torchvision:mobilenet_v3_small", 10),
    "MobileNetV3Large": ("torchvision:mobilenet_v3_large", 10), "ConvNeXtTiny": ("torchvision:convnext_tiny", 1000),
    "ConvNeXtBase": ("torchvision:convnext_base", 1000), "RegNetX400MF": ("torchvision:regnet_x_400mf", 1000),
}  # fmt: skip
"""Target and classes by their name of it."""
_TEXTS = {
    "EleutherAI/gpt-neo-125M": (
        "hf:gpt_neo",
        (
            "hidden_size=768",
            "num_layers=12",
            "num_heads=12",
            "attention_types=[[['global', 'local'], 6]]",
            "dtype=float32",
        ),
    )
}
"""Targets and arguments of models of words whose configuration is not packaged."""
_GPUS = {"RTX 3060": "rtx-3060-12gb", "RTX 4060": "rtx-4060-8gb"}
_PIXELS, _WORDS = 86, 128


def read(row: Mapping[str, str]) -> Case:
    """The case of one row."""
    model, gpu = row.get("model", ""), _GPUS.get(row.get("gpu", ""), "")
    peak, reason = positive(row, "ground_truth_peak_bytes"), ""
    if positive(row, "real_oom"):
        reason = "the run ended out of memory: its peak is the card's"
    elif model not in _MODELS and "/" not in model:
        reason = f"model {model!r} is not known"
    elif not gpu:
        reason = f"no packaged GPU is {row.get('gpu')!r}"
    elif row.get("precision") != "fp32":
        reason = f"precision {row.get('precision')!r} is not known"
    known = Case(
        gpu=gpu or row.get("gpu", ""), reason=reason,
        measured_reserved_bytes=None if peak is None or reason.startswith("the run") else round(peak),
    )  # fmt: skip
    if reason:
        return known
    target, args, seq = _target(model)
    return Case(
        target=target, target_args=args, batch=whole(row, "batch"), seq=seq,
        optimizer=row["optimizer"].lower(), cluster=f"{gpu}:1", gpu=gpu,
        measured_reserved_bytes=known.measured_reserved_bytes,
    )  # fmt: skip


def _target(model: str) -> tuple[str, tuple[str, ...], int | None]:
    if "/" in model:  # an id of the Hub
        return (*_TEXTS.get(model, (f"hf:{model}", ("dtype=float32",))), _WORDS)
    target, classes = _MODELS[model]
    return target, (f"image_size={_PIXELS}", f"num_classes={classes}"), None
