"""The virtual GPU against xMem: peaks that its authors measured with NVML on a GeForce RTX 3060 and an RTX 4060.

    python benchmarks/xmem_rows.py [MODEL ...]

xMem estimates peaks on the CPU, and publishes what it measured beside its own estimates. The rows (benchmarks/xmem/
rows.csv) are all 80 runs of one of its folders, and one of a transformer (github.com/Stone-ResearchLife/xMem at
d61e076, plot/data/002-Monte Carlo/CNN/001 and 001-Anova/Transformer/001): the same model, optimizer, batch and loop,
here on a virtual GPU. Compared is the peak of reserved memory, since what was measured leaves out what the GPU held
before the run. The runs were made with torch 2.6.0: use that, torchvision 0.21 and transformers 4.49.
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnmem.estimator.devices import find_device
from dnnmem.profilers.virtual_gpu.launch import prepare

if TYPE_CHECKING:
    import torch

ROWS = Path(__file__).parent / "xmem" / "rows.csv"
RESULTS = Path(__file__).parents[1] / "tests" / "accuracy" / "data" / "xmem_rows.csv"
GIB = 2**30
TOTAL_BYTES = {"rtx-3060-12gb": 12622168064, "rtx-4060-8gb": 8318222336}
"""total_memory of the cards, as published with each run."""
ITERATIONS = 4
"""The loop leaves after the one with index 3."""
PIXELS = 86
WORDS = 128
"""Longest text after their tokenizer; nearly every batch holds one that long."""
_TEXTS = {"model", "optimizer", "gpu", "torch"}
_TEN_CLASSES = {"mnasnet1_0", "mobilenet_v3_large", "mobilenet_v3_small"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published run."""

    model: str
    """torchvision's name, or `gpt-neo-125M`."""
    optimizer: str
    """Class of torch.optim."""
    batch: int
    """Images, or texts."""
    gpu: str
    """Name in the table of GPUs."""
    measured_bytes: int
    """Peak by NVML, less what was in use at the start."""
    xmem_bytes: int
    """What xMem estimated."""
    was_out_of_memory: bool
    """The run ended in that."""
    in_sample: bool
    """One of the six that were looked at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Row):
    """One row, reproduced."""

    reproduced_bytes: int
    """Peak of reserved memory."""
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
    """The model of a row, as xMem makes it: some tell 10 classes apart, the others 1000."""
    if name == "gpt-neo-125M":
        from transformers import AutoModelForCausalLM, GPTNeoConfig

        config = GPTNeoConfig(
            hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]]
        )  # fmt: skip
        return AutoModelForCausalLM.from_config(config)
    from torchvision import models

    options = {"num_classes": 10} if name in _TEN_CLASSES else {}
    return models.get_model(name, weights=None, **options)


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
        images, labels = torch.empty(batch, 3, PIXELS, PIXELS).to("cuda"), torch.randint(0, 10, (batch,)).to("cuda")
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
    return {"reproduced_bytes": torch.cuda.max_memory_reserved(), "is_out_of_memory": ran_out}


def train_all(rows: Sequence[Row]) -> None:
    """`train` each row in a child of this process, which has loaded torch once; a line of JSON each."""
    import torch

    torch.set_num_threads(1)
    for row in rows:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            print(json.dumps(train(row)), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


def run(rows: Sequence[Row]) -> list[Result]:
    """`train_all` on a virtual GPU of each kind."""
    found: list[Result] = []
    for gpu, total_bytes in TOTAL_BYTES.items():
        mine = [row for row in rows if row.gpu == gpu]
        if not mine:
            continue
        card = dataclasses.replace(find_device(gpu), usable_bytes=total_bytes)
        environment = {**prepare(card, os.environ).environment, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--here", json.dumps([dataclasses.asdict(row) for row in mine])]
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        found += [
            Result(**dataclasses.asdict(row), **line, torch=version("torch"))
            for row, line in zip(mine, lines, strict=True)
        ]
    return found


def load(path: Path) -> list[dict[str, Any]]:
    """The lines of a CSV file, numbers and truth values read."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: text if name in _TEXTS else json.loads(text.lower()) for name, text in line.items()}
            for line in csv.DictReader(file)
        ]


def save(results: list[Result]) -> None:
    """Write the results anew."""
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, results))


def sample_table(results: Iterable[Result]) -> str:
    """The runs that were looked at first, as Markdown."""
    lines = ["| run | measured, GiB | reproduced | error | xMem's error |", "|---|---|---|---|---|"]
    for result in results:
        name = f"{result.model}, {result.optimizer}, batch {result.batch}"
        error = "out of memory, as measured" if result.is_out_of_memory else f"{result.error:+.1%}"
        sizes = f"{result.measured_bytes / GIB:.2f} | {result.reproduced_bytes / GIB:.2f}"
        lines.append(f"| {name} | {sizes} | {error} | {result.xmem_error:+.1%} |")
    return "\n".join(lines)


def model_table(results: Sequence[Result]) -> str:
    """All runs, a line for each model and GPU, as Markdown."""
    lines = ["| model | GPU | runs | out of memory | our errors | xMem's median |", "|---|---|---|---|---|---|"]
    for model, gpu in sorted({(result.model, result.gpu) for result in results}):
        mine = [result for result in results if (result.model, result.gpu) == (model, gpu)]
        fitted = [result for result in mine if not result.was_out_of_memory]
        errors = ", ".join(f"{error:+.1%}" for error in sorted(result.error for result in fitted)) or "-"
        theirs = f"{statistics.median(abs(r.xmem_error) for r in fitted):.1%}" if fitted else "-"
        lines.append(f"| {model} | {gpu} | {len(mine)} | {len(mine) - len(fitted)} | {errors} | {theirs} |")
    return "\n".join(lines)


def verdict(name: str, results: Sequence[Result]) -> bool:
    """Print the medians of the runs that fitted; True if ours is below 2.5 % and xMem's, and all verdicts agree."""
    fitted = [result for result in results if not result.was_out_of_memory]
    ours = statistics.median(abs(result.error) for result in fitted)
    theirs = statistics.median(abs(result.xmem_error) for result in fitted)
    agree = sum(result.is_out_of_memory == result.was_out_of_memory for result in results)
    print(f"{name}: median error {ours:.2%} (xMem {theirs:.2%}); out of memory or not: {agree} of {len(results)} right")
    return ours < min(0.025, theirs) and agree == len(results)


def report(results: Sequence[Result]) -> bool:
    """Print tables and medians; True if all runs together are where they should be."""
    sample = [result for result in results if result.in_sample]
    if sample:
        print(sample_table(sample))
        verdict("the first six", sample)
    print(model_table(results))
    return verdict("all", results)


def main() -> int:
    """1 if the medians or verdicts are not what they should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="only these models")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the saved results as Markdown")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.here:
        train_all([Row(**row) for row in json.loads(chosen.here)])
        return 0
    if chosen.table:
        report([Result(**line) for line in load(RESULTS)])
        return 0
    rows = [Row(**line) for line in load(ROWS)]
    results = run([row for row in rows if row.model in (chosen.models or [row.model])])
    if chosen.save:
        save(results)
    return 0 if report(results) else 1


if __name__ == "__main__":
    sys.exit(main())
