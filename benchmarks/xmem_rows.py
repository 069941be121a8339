"""The virtual GPU against xMem: peaks that its authors measured with NVML on a GeForce RTX 3060.

    python benchmarks/xmem_rows.py [MODEL ...]

xMem estimates peaks on the CPU, and publishes what it measured beside its own estimates. Each row below is one such run
(github.com/Stone-ResearchLife/xMem at d61e076, plot/data/*/evaluation_result.json): the same model, optimizer, batch
and loop, here on a virtual RTX 3060; compared is the peak of reserved memory, since what was measured leaves out what
the GPU held before the run. The runs were made with torch 2.6.0: use that, torchvision 0.21 and transformers 4.49.
--save writes the results to tests/accuracy/data, --table prints those as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.estimator.cluster import find_device
from dnnmem.profilers.virtual_gpu.launch import prepare

if TYPE_CHECKING:
    import torch

RESULTS = Path(__file__).parents[1] / "tests" / "accuracy" / "data" / "xmem_rows.csv"
GIB = 2**30
TOTAL_BYTES = 12622168064
"""total_memory of the card, as published with each run."""
ITERATIONS = 4
"""The loop leaves after the one with index 3."""
PIXELS = 86
WORDS = 128
"""Longest text after their tokenizer; nearly every batch holds one that long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published run."""

    model: str
    """torchvision's name, or `gpt-neo-125M`."""
    optimizer: str
    """Class of torch.optim."""
    batch: int
    """Images, or texts."""
    measured_bytes: int
    """Peak by NVML, less what was in use at the start."""
    xmem_bytes: int
    """What xMem estimated."""
    out_of_memory: bool = False
    """The run ended in that."""


ROWS = (
    Row(model="mnasnet1_0", optimizer="SGD", batch=323, measured_bytes=3514826752, xmem_bytes=2975858688),
    Row(model="regnet_y_400mf", optimizer="SGD", batch=503, measured_bytes=3592421376, xmem_bytes=3361734656),
    Row(model="vgg16", optimizer="SGD", batch=684, measured_bytes=11804868608, xmem_bytes=12119441408),
    Row(model="vgg19", optimizer="AdamW", batch=377, measured_bytes=10867441664, xmem_bytes=9707716608),
    Row(
        model="resnet101",
        optimizer="Adagrad",
        batch=571,
        measured_bytes=12335448064,
        xmem_bytes=12723421184,
        out_of_memory=True,
    ),
    Row(model="gpt-neo-125M", optimizer="Adam", batch=5, measured_bytes=3351248896, xmem_bytes=3852468224),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row, measured and reproduced."""

    model: str
    optimizer: str
    batch: int
    measured_bytes: int
    """By NVML."""
    reproduced_bytes: int
    """Peak of reserved memory."""
    xmem_bytes: int
    """What xMem estimated."""
    was_out_of_memory: bool
    """On the real GPU."""
    is_out_of_memory: bool
    """Here."""
    torch: str

    @property
    def error(self) -> float:
        """Relative error of the reproduced peak."""
        return self.reproduced_bytes / self.measured_bytes - 1

    @property
    def xmem_error(self) -> float:
        """Relative error of xMem's estimate."""
        return self.xmem_bytes / self.measured_bytes - 1


def make_model(name: str) -> torch.nn.Module:
    """The model of a row, as xMem makes it: MnasNet tells 10 classes apart, the others 1000."""
    if name == "gpt-neo-125M":
        from transformers import AutoModelForCausalLM, GPTNeoConfig

        config = GPTNeoConfig(
            hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]]
        )  # fmt: skip
        return AutoModelForCausalLM.from_config(config)
    from torchvision import models

    return models.MNASNet(alpha=1.0, num_classes=10) if name == "mnasnet1_0" else models.get_model(name, weights=None)


def make_forward(model: torch.nn.Module, batch: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """One iteration's forward pass, batch made and moved as their loaders do: (outputs, loss)."""
    import torch

    if hasattr(model, "config"):

        def read_text() -> tuple[torch.Tensor, torch.Tensor]:
            words = torch.randint(0, 50257, (batch, WORDS))
            texts = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words.clone()}
            out = model(**{name: tensor.to("cuda") for name, tensor in texts.items()})
            return out.logits, out.loss

        return read_text
    criterion = torch.nn.CrossEntropyLoss()

    def look() -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = torch.randn(batch, 3, PIXELS, PIXELS).to("cuda"), torch.randint(0, 10, (batch,)).to("cuda")
        outputs = model(images)
        return outputs, criterion(outputs, labels)

    return look


def train(row: Row) -> dict[str, object]:
    """The loop of xMem: gradients are cleared first, and the outputs of an iteration live into the next one."""
    import torch

    ran_out = False
    model = make_model(row.model)
    try:
        model.to("cuda").train()
        optimizer = getattr(torch.optim, row.optimizer)(model.parameters(), lr=0.001)
        forward = make_forward(model, row.batch)
        for _ in range(ITERATIONS):
            optimizer.zero_grad()
            outputs, loss = forward()
            loss.backward()
            optimizer.step()
            _chosen = outputs.max(-1)
    except torch.OutOfMemoryError:
        ran_out = True
    return {"reserved_bytes": torch.cuda.max_memory_reserved(), "out_of_memory": ran_out}


def run(row: Row) -> Result:
    """`train` in a process of its own, on a virtual RTX 3060."""
    card = dataclasses.replace(find_device("rtx-3060-12gb"), usable_bytes=TOTAL_BYTES)
    environment = {**prepare(card, os.environ).environment, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--here", row.model]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    return Result(
        model=row.model,
        optimizer=row.optimizer,
        batch=row.batch,
        measured_bytes=row.measured_bytes,
        reproduced_bytes=found["reserved_bytes"],
        xmem_bytes=row.xmem_bytes,
        was_out_of_memory=row.out_of_memory,
        is_out_of_memory=found["out_of_memory"],
        torch=version("torch"),
    )


def load_results() -> list[Result]:
    """What was saved."""
    texts = {"model", "optimizer", "torch"}
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [
            Result(**{name: text if name in texts else json.loads(text.lower()) for name, text in line.items()})
            for line in csv.DictReader(file)
        ]


def save(results: list[Result]) -> None:
    """Write the results anew."""
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, results))


def table(results: Iterable[Result]) -> str:
    """The results as Markdown."""
    lines = ["| run | measured, GiB | reproduced | error | xMem's error |", "|---|---|---|---|---|"]
    for result in results:
        name = f"{result.model}, {result.optimizer}, batch {result.batch}"
        error = "out of memory, as measured" if result.is_out_of_memory else f"{result.error:+.1%}"
        sizes = f"{result.measured_bytes / GIB:.2f} | {result.reproduced_bytes / GIB:.2f}"
        lines.append(f"| {name} | {sizes} | {error} | {result.xmem_error:+.1%} |")
    return "\n".join(lines)


def verdict(results: list[Result]) -> bool:
    """Print the medians of the runs that fitted; True if ours is below 2.5 % and xMem's, and all verdicts agree."""
    fitted = [result for result in results if not result.was_out_of_memory]
    ours = statistics.median(abs(result.error) for result in fitted)
    theirs = statistics.median(abs(result.xmem_error) for result in fitted)
    agree = sum(result.is_out_of_memory == result.was_out_of_memory for result in results)
    print(f"median error {ours:.2%} (xMem {theirs:.2%}); out of memory or not: {agree} of {len(results)} right")
    return ours < min(0.025, theirs) and agree == len(results)


def main() -> int:
    """1 if the medians or verdicts are not what they should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="only these rows")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the saved results as Markdown")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.here:
        print(json.dumps(train(next(row for row in ROWS if row.model == chosen.here))))
        return 0
    if chosen.table:
        print(table(load_results()))
        return 0
    results = [run(row) for row in ROWS if row.model in (chosen.models or [row.model])]
    print(table(results))
    if chosen.save:
        save(results)
    return 0 if verdict(results) else 1


if __name__ == "__main__":
    sys.exit(main())
