"""How close is the time model to training steps of image models? timm's published throughput on an RTX 3090.

    pip install '.[vision]'
    python benchmarks/timm_rows.py FILE.csv [--nhwc] [--model NAME ...] [--rows]

FILE.csv is timm's results/benchmark-train-amp-*.csv (torch 1.12, cuDNN 8, fp16 autocast, no loss scaling, SGD with
Nesterov momentum over single tensors, cudnn.benchmark). Each model is recorded on the fake GPU at the row's batch and
image size, and priced; nothing is fitted here. Models are some of each family.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import warnings
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.roofline import by_class, host_seconds, op_seconds
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Origin, Trace
from dnnmem.estimator.work import work_of
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.step import Target

GPU = "rtx-3090-24gb"
# fmt: off
DENSE = (
    "resnet18", "resnet50d", "resnet101", "wide_resnet50_2", "densenet121", "vgg13", "vgg11_bn", "repvgg_b0",
    "darknet21", "cs3darknet_l", "hrnet_w18_small", "vovnet57a", "ecaresnet50d", "resnetv2_50", "skresnet18",
    "selecsls60", "res2net50_26w_4s",
)
GROUPED = (
    "resnext50_32x4d", "resnext101_32x8d", "regnetx_004", "regnetx_016", "regnetx_040", "regnety_016", "dpn92",
    "dla60x", "seresnext50_32x4d", "mnasnet_100", "mobilenetv2_140", "mobilenetv3_large_075", "tf_efficientnet_b0",
    "efficientnet_b1", "tf_efficientnetv2_b3", "ghostnet_050", "mixnet_s", "rexnet_100", "convnext_tiny",
)
# fmt: on


def step(model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The step of timm's benchmark."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.float16):
        output = model(images)
    labels = torch.empty((images.shape[0],), device=images.device, dtype=torch.long).random_(1000)
    nn.functional.cross_entropy(output, labels).backward()
    optimizer.step()


def record(name: str, batch: int, size: int, *, nhwc: bool) -> Trace:
    """The step of one model."""
    layout = torch.channels_last if nhwc else torch.contiguous_format
    target = Target(
        name=name,
        make_model=lambda: timm.create_model(name).to(memory_format=layout),
        make_batch=lambda: torch.randn(batch, 3, size, size).contiguous(memory_format=layout),
        make_optimizer=lambda parameters: torch.optim.SGD(
            parameters, lr=1e-4, momentum=0.9, nesterov=True, foreach=False
        ),
        train_step=step,
        batch={"batch_size": batch},
        rescale=lambda *_: target,
    )
    origin = Origin(target=f"timm:{name}", device="fake", gpu=GPU)
    return profile_fake(target, steps=2, origin=origin, on_step=lambda _: None, gpu=find_device(GPU))[0]


def predict(trace: Trace) -> tuple[float, dict[str, float]]:
    """Seconds of the step, and by class."""
    device = find_device(GPU)
    model, work = load(device), work_of(trace)
    seconds = op_seconds(work, device, model)
    return max(float(seconds.sum()), float(host_seconds(work, model).sum())), by_class(work, seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--nhwc", action="store_true")
    parser.add_argument("--model", action="append")
    parser.add_argument("--rows", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with Path(given.file).open(encoding="utf-8") as text:
        rows = {row["model"]: row for row in csv.DictReader(text)}
    for title, names in (("dense", DENSE), ("grouped and depthwise", GROUPED)):
        errors = []
        for name in names if given.model is None else [n for n in names if n in given.model]:
            if name not in rows:
                continue
            row = rows[name]
            batch, size = int(row["train_batch_size"]), int(row["train_img_size"])
            seconds, classes = predict(record(name, batch, size, nhwc=given.nhwc))
            errors.append(seconds * float(row["train_samples_per_sec"]) / batch - 1)
            if given.rows:
                shares = ", ".join(f"{label} {part / seconds:.0%}" for label, part in list(classes.items())[:5])
                print(f"{name:30} {batch:4} {1e3 * seconds:8.1f} ms {errors[-1]:+.0%}  {shares}")
        if errors:
            sizes = [abs(e) for e in errors]
            mean, median, bias = statistics.mean(sizes), statistics.median(sizes), statistics.median(errors)
            print(f"{title}: {len(errors)} models, mean |error| {mean:.1%}, median {median:.1%}, bias {bias:+.1%}")


if __name__ == "__main__":
    main()
