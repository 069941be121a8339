"""Reserved memory three ways: a step on a virtual GPU, its trace replayed, and `--device fake`.

    pip install '.[hf,vision,test]'
    python benchmarks/reserved_rows.py [TARGET ...] [--save]

Each target runs in a process of its own, on a virtual GPU: three steps bare, whose peak of reserved memory is torch's
own allocator's; three recorded, whose trace is played on `estimator/allocator.py`; then on FakeTensors with that GPU's
rules. --save writes the results to tests/accuracy/data, --table prints those as Markdown.
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
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dnnmem.estimator.replay import replay_trace
from dnnmem.profilers.request import Request
from dnnmem.profilers.virtual_gpu.launch import prepare

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "accuracy" / "data" / "reserved_rows.csv"
GPUS = ("h100-sxm-80gb", "a100-sxm-40gb", "rtx-4090-24gb")
MEDIAN, WORST = 0.01, 0.03
"""Largest median and largest single error of `fake`."""
MIB = 2**20
SAMPLES = ("mlp", "gpt", "moe", "resnet", "unet", "vit")
VISION = (
    "alexnet", "densenet121", "efficientnet_b0", "googlenet", "mnasnet1_0", "mobilenet_v3_large", "regnet_y_400mf",
    "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t",
)  # fmt: skip
TIMM = (
    "convnext_tiny", "deit_tiny_patch16_224", "efficientnet_lite0", "ghostnet_100", "mixer_s32_224",
    "mobilevit_s", "poolformer_s12", "resnext50_32x4d", "seresnet50", "xcit_nano_12_p16_224",
)  # fmt: skip
HF = ("bert", "distilbert", "electra", "gpt2", "gpt_neox", "mamba", "opt", "qwen3", "roberta", "t5")
TARGETS = (
    *(f"sample_models/{name}.py" for name in SAMPLES),
    *(f"torchvision:{name}" for name in VISION),
    *(f"timm:{name}" for name in TIMM),
    *(f"hf:{name}" for name in HF),
)
UNSEEN = (
    "torchvision:vgg11", "torchvision:inception_v3", "timm:efficientformer_l1", "timm:rexnet_100", "hf:albert",
    "hf:convbert",
)  # fmt: skip
"""Of other families; first run when the rules of `fake` had been written."""
SMALL = {"num_hidden_layers": "2"}
"""What makes the larger ones of `hf:` quick; depth repeats what is there."""
SHALLOW = frozenset({"gpt_neox", "mamba", "opt", "qwen3"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One step of one target."""

    target: str
    gpu: str
    virtual_bytes: int
    """Peak of reserved memory of the bare step, by torch."""
    replayed_bytes: int
    """The same of the recorded step's trace, played."""
    fake_bytes: int
    """The same of the trace of FakeTensors."""
    torch: str

    @property
    def error(self) -> float:
        """Relative error of `fake`."""
        return self.fake_bytes / self.virtual_bytes - 1

    @property
    def kept(self) -> bool:
        """Replay is exact and `fake` within `WORST`."""
        return self.replayed_bytes == self.virtual_bytes and abs(self.error) <= WORST


def request(target: str, gpu: str, device: str) -> Request:
    """A small batch of `target`."""
    family, _, name = target.partition(":")
    if family == "hf":
        args = SMALL if name in SHALLOW else {}
        return Request(target=target, gpu=gpu, device=device, batch_size=4, seq_len=128, args=args)
    return Request(target=target, gpu=gpu, device=device, batch_size=4 if name else None)


def measure(target: str, gpu: str) -> Result:
    """All three in this process, which has a virtual GPU."""
    from dnnmem.profilers.worker import profile

    trace, measured = profile(request(target, gpu, "virtual"), lambda _: None)
    faked, _ = profile(request(target, gpu, "fake"), lambda _: None)
    return Result(
        target=target,
        gpu=gpu,
        virtual_bytes=measured.reserved_bytes or 0,
        replayed_bytes=replay_trace(trace).peak_reserved_bytes,
        fake_bytes=replay_trace(faked).peak_reserved_bytes,
        torch=version("torch"),
    )


def run(target: str, gpu: str) -> Result:
    """`measure` in a process of its own; ends the benchmark if it fails."""
    environment = {**prepare(gpu, os.environ).environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--here", target, gpu]
    output = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Result(**json.loads(output.splitlines()[-1]))


def pairs(targets: Iterable[str]) -> list[tuple[str, str]]:
    """Each target on one of the GPUs, in turn."""
    return [(target, GPUS[(*TARGETS, *UNSEEN).index(target) % len(GPUS)]) for target in targets]


def load_results() -> list[Result]:
    """What was saved."""
    texts = {"target", "gpu", "torch"}
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [
            Result(**{name: text if name in texts else int(text) for name, text in line.items()})
            for line in csv.DictReader(file)
        ]


def save(results: Iterable[Result]) -> None:
    """Put `results` among those that were saved, in place of older ones of the same targets."""
    order = {target: number for number, target in enumerate((*TARGETS, *UNSEEN))}
    known = {(r.target, r.gpu): r for r in (load_results() if RESULTS.exists() else [])}
    known |= {(r.target, r.gpu): r for r in results}
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Result)], lineterminator="\n")
        writer.writeheader()
        rows = sorted(known.values(), key=lambda r: (order.get(r.target, len(order)), GPUS.index(r.gpu)))
        writer.writerows(map(dataclasses.asdict, rows))


def median_error(results: Iterable[Result]) -> float:
    """Of `fake`."""
    return statistics.median(abs(r.error) for r in results)


def table(results: Iterable[Result]) -> str:
    """The results as Markdown."""
    lines = ["| target | GPU | virtual, MiB | replayed | fake | error |", "|---|---|---|---|---|---|"]
    for r in results:
        sizes = " | ".join(f"{n / MIB:,.0f}" for n in (r.virtual_bytes, r.replayed_bytes, r.fake_bytes))
        lines.append(f"| {r.target} | {r.gpu} | {sizes} | {r.error:+.2%} |")
    return "\n".join(lines)


def main() -> int:
    """1 if a replay is not exact, or `fake` further off than it may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="only these")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the saved results as Markdown")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.here:
        print(json.dumps(dataclasses.asdict(measure(*chosen.here))))
        return 0
    if chosen.table:
        print(table(load_results()))
        return 0
    results = []
    for target, gpu in pairs(chosen.targets or (*TARGETS, *UNSEEN)):
        results.append(run(target, gpu))
        print(table(results[-1:]).splitlines()[-1], flush=True)
        if chosen.save:
            save(results[-1:])
    return 0 if median_error(results) <= MEDIAN and all(result.kept for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
