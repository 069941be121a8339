"""How close is the time model to training steps of image models? timm's published throughput on an RTX 3090.

    pip install '.[vision]'
    python benchmarks/timm_rows.py FILE.csv ... --traces FOLDER [--minutes 30] [--model NAME ...] [--rows]

FILE.csv is timm's results/benchmark-train-amp-{nhwc,nchw}-*.csv (torch 1.12, cuDNN 8, fp16 autocast, no loss scaling,
SGD with Nesterov momentum over single tensors, cudnn.benchmark); its name tells the layout. Each model is recorded on
the fake GPU at the row's batch and image size, its trace kept in the folder, and priced; nothing is fitted here.
Rows come in an order that was fixed before any was looked at: one of each family after the other, a family's by the
hash of its names. So those that `--minutes` leaves time for are a sample of all families.
"""

from __future__ import annotations

import argparse
import collections
import csv
import hashlib
import pickle
import re
import statistics
import time
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import timm
import timm.layers
import torch
from torch import Tensor, nn

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.op_class import OpClass
from dnnmem.estimator.roofline import by_class, host_seconds, op_seconds
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Origin, Trace
from dnnmem.estimator.validation.score import spearman
from dnnmem.estimator.work import work_of
from dnnmem.profilers.fake import profile_fake
from dnnmem.profilers.step import Target

GPU = "rtx-3090-24gb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published step."""

    layout: str
    name: str
    batch: int
    size: int
    seconds: float


def step(model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The step of timm's benchmark."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.float16):
        output = model(images)
    while isinstance(output, tuple):
        output = output[0]
    labels = torch.empty((images.shape[0],), device=images.device, dtype=torch.long).random_(output.shape[-1])
    nn.functional.cross_entropy(output, labels).backward()
    optimizer.step()


def record(row: Row) -> Trace:
    """The step of one model."""
    layout = torch.channels_last if row.layout == "nhwc" else torch.contiguous_format
    target = Target(
        name=row.name,
        make_model=lambda: create(row).to(memory_format=layout),
        make_batch=lambda: torch.randn(row.batch, 3, row.size, row.size).contiguous(memory_format=layout),
        make_optimizer=lambda parameters: torch.optim.SGD(
            parameters, lr=1e-4, momentum=0.9, nesterov=True, foreach=False
        ),
        train_step=step,
        batch={"batch_size": row.batch},
        rescale=lambda *_: target,
    )
    origin = Origin(target=f"timm:{row.name}", device="fake", gpu=GPU)
    return profile_fake(target, steps=2, origin=origin, on_step=lambda _: None, gpu=find_device(GPU))[0]


def create(row: Row) -> nn.Module:
    """The model; those with tables for one image size are told the row's."""
    try:
        return timm.create_model(row.name, img_size=row.size)
    except TypeError:
        return timm.create_model(row.name)


def kept(row: Row, folder: Path) -> Trace | str:
    """The step from the folder, or recorded and put there; or why it cannot be recorded."""
    file = folder / f"{row.layout}-{row.name}.trace"
    if not file.exists():
        try:
            found: Trace | str = record(row)
        except Exception as error:  # noqa: BLE001  (any of 400 models may fail in its own way)
            found = f"{type(error).__name__}: {error}"
        file.write_bytes(zlib.compress(pickle.dumps(found), 1))
    return pickle.loads(zlib.decompress(file.read_bytes()))  # noqa: S301  (our own file)


def rows_of(files: list[str]) -> list[Row]:
    """The rows of all files, in the order above."""
    found = []
    for file in files:
        layout = "nhwc" if "nhwc" in Path(file).name else "nchw"
        with Path(file).open(encoding="utf-8") as text:
            for row in csv.DictReader(text):
                batch, size = int(row["train_batch_size"]), int(row["train_img_size"])
                seconds = batch / float(row["train_samples_per_sec"])
                found.append(Row(layout=layout, name=row["model"], batch=batch, size=size, seconds=seconds))
    found.sort(key=lambda row: hashlib.sha256(f"{row.layout} {row.name}".encode()).digest())
    turn: collections.Counter[str] = collections.Counter()
    places = []
    for row in found:
        turn[family(row.name)] += 1
        places.append(turn[family(row.name)])
    return [row for _, row in sorted(zip(places, found, strict=True), key=lambda pair: pair[0])]


def family(name: str) -> str:
    """The letters a name begins with, without its trainer's."""
    found = re.match(r"[a-z]+", re.sub(r"^(tf|tv|ssl|swsl|ig|gluon|jx|legacy|cs3)_?", "", name))
    return found.group() if found else name


def predict(trace: Trace) -> tuple[float, dict[str, float], str]:
    """Seconds of the step, by class, and what its arithmetic is: grouped, dense or no convolutions."""
    device = find_device(GPU)
    model, work = load(device), work_of(trace)
    seconds = op_seconds(work, device, model)
    kinds = collections.Counter(dict(zip(map(OpClass, work.kind), [0] * len(work.kind), strict=True)))
    for kind, flops in zip(work.kind, work.flops, strict=True):
        kinds[OpClass(kind)] += flops
    if OpClass.GROUPED_CONV in kinds or OpClass.DEPTHWISE_CONV in kinds:
        sort = "grouped or depthwise convolutions"
    else:
        sort = "dense convolutions" if kinds[OpClass.CONV] > kinds[OpClass.GEMM] else "mostly products"
    return max(float(seconds.sum()), float(host_seconds(work, model).sum())), by_class(work, seconds), sort


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--traces", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--model", action="append")
    parser.add_argument("--rows", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    timm.layers.set_fused_attn(enable=False)  # torch 1.12 has none
    given.traces.mkdir(parents=True, exist_ok=True)
    until, pairs = time.monotonic() + 60 * given.minutes, collections.defaultdict(list)
    rows = [row for row in rows_of(given.files) if given.model is None or row.name in given.model]
    for row in rows:
        if time.monotonic() > until:
            break
        trace = kept(row, given.traces)
        if isinstance(trace, str):
            print(f"{row.layout} {row.name}: not recorded: {trace.splitlines()[0][:90]}")
            continue
        seconds, classes, sort = predict(trace)
        for group in (row.layout, sort, "all"):
            pairs[group].append((row.seconds, seconds))
        if given.rows:
            shares = ", ".join(f"{label} {part / seconds:.0%}" for label, part in list(classes.items())[:5])
            error = f"{1e3 * row.seconds:8.1f} {1e3 * seconds:8.1f} ms {seconds / row.seconds - 1:+.0%}"
            print(f"{row.layout} {row.name:32} {row.batch:4} {error}  {shares}", flush=True)
    for group, found in sorted(pairs.items()):
        errors = [predicted / measured - 1 for measured, predicted in found]
        sizes = [abs(error) for error in errors]
        mean, median, bias = statistics.mean(sizes), statistics.median(sizes), statistics.median(errors)
        rank = spearman(*map(list, zip(*found, strict=True)))
        told = "-" if rank is None else f"{rank:.3f}"
        told = f"median {median:.1%}, {bias:+.1%}, rank {told}"
        print(f"{group}: {len(found)} of {len(rows)} rows, mean {mean:.1%}, {told}")


if __name__ == "__main__":
    main()
