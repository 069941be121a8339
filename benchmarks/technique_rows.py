"""Each technique for one GPU, alone, on eight models: what its pass says the step needs, and what a run of it needed.

    python benchmarks/technique_rows.py [--gpu h100-sxm-80gb] [--workers 2] [--save] [--only NAME ...] [MODEL ...]
    python benchmarks/technique_rows.py --above 0.02 --save        those again whose kept rows are further off
    python benchmarks/technique_rows.py --missing --save           those that are not kept yet
    python benchmarks/technique_rows.py --table                    the table alone

The plain step is recorded without a GPU and rewritten by the pass; the apply does the same to the model, whose steps a
virtual GPU runs. A row for each model and technique, the allocator's peaks in MiB; --save keeps them in
tests/accuracy/data/technique_rows.csv and writes the table of all that are kept into docs/accuracy.md. Types are
recorded in themselves, as `recommend` does where the model is at hand. Rows of float8 need torchao.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from verify_rows import LLAMA_1B, SAMPLES

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.device import Device
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import replay_on
from dnnmem.estimator.report import Verified
from dnnmem.estimator.trace import Trace
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.spread import spread
from dnnmem.profilers.verify import verify

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "accuracy.md"
KEPT = ROOT / "tests" / "accuracy" / "data" / "technique_rows.csv"
START, END = "<!-- technique rows -->", "<!-- end of technique rows -->"
MIB = 2**20
_COLUMNS = (
    "model", "technique", "predicted_allocated", "predicted_reserved", "ran_allocated", "ran_reserved", "message",
)  # fmt: skip
MODELS = {
    "GPT-2": Request(target=str(SAMPLES / "gpt.py"), batch_size=4, seq_len=1024),
    "Llama, 1B": Request(target="hf:llama", batch_size=2, seq_len=1024, args=LLAMA_1B),
    "ViT-B/16": Request(target="torchvision:vit_b_16", batch_size=32),
    "ResNet-50": Request(target="torchvision:resnet50", batch_size=32),
    "U-Net": Request(target=str(SAMPLES / "unet.py"), batch_size=8),
    "BERT": Request(target="hf:bert", batch_size=8, seq_len=512),
    "T5": Request(target="hf:t5", batch_size=8, seq_len=512),
    "LSTM": Request(target=str(SAMPLES / "lstm.py"), batch_size=16),
}
TECHNIQUES = {
    "plain": (),
    "accumulation": ("batch.accumulation=2",),
    "TF32": ("precision.compute=tf32",),
    "bf16 autocast": ("precision.compute=bf16_amp",),
    "fp16 autocast": ("precision.compute=fp16_amp",),
    "bf16": ("precision.compute=bfloat16",),
    "bf16, float32 master weights": ("precision.compute=bfloat16", "precision.param=float32"),
    "float8 linear layers": ("precision.linear=float8",),
    "float8 linear layers, bf16 autocast": ("precision.linear=float8", "precision.compute=bf16_amp"),
    "loss in 8 chunks": ("loss.chunks=8",),
    "fused head and loss": ("loss.chunks=8", "loss.fused=true"),
    "SGD": ("optimizer.name=sgd",),
    "momentum": ("optimizer.name=momentum",),
    "AdamW, one kernel": ("optimizer.name=adamw", "optimizer.kernel=fused"),
    "AdamW, a loop": ("optimizer.name=adamw", "optimizer.kernel=for_loop"),
    "AdamW, 16-bit moments": ("optimizer.name=adamw", "optimizer.state=bfloat16"),
    "update in the backward pass": ("optimizer.in_backward=true",),
    "Adafactor": ("optimizer.name=adafactor",),
    "Lion": ("optimizer.name=lion",),
    "LAMB": ("optimizer.name=lamb",),
    "LARS": ("optimizer.name=lars",),
    "Muon": ("optimizer.name=muon",),
    "Shampoo": ("optimizer.name=shampoo",),
    "SOAP": ("optimizer.name=soap",),
    "GaLore": ("optimizer.name=galore",),
    "recompute: full": ("remat.policy=full",),
    "recompute: every second block": ("remat.policy=every", "remat.every=2"),
    "recompute: selective": ("remat.policy=selective",),
    "recompute: norms and activations": ("remat.policy=ops", "remat.keep=products"),
    "recompute: attention": ("remat.policy=attention",),
    "recompute: segments": ("remat.policy=segments", "remat.segments=0-2(1-2)"),
    "activations on the host": ("offload.activations=all",),
    "activations in files": ("offload.activations=all", "offload.files=true"),
    "every second block's on the host": ("offload.activations=every", "offload.every=2"),
    "convolutions' inputs on the host": ("offload.activations=conv",),
    "optimizer on the host": ("offload.optimizer=true",),
    "weights on the host": ("offload.optimizer=true", "offload.parameters=true"),
    "8-bit activations": ("compression.bits=8",),
    "4-bit activations": ("compression.bits=4",),
    "2-bit activations": ("compression.bits=2",),
    "1-bit masks": ("compression.masks=true",),
    "random projections": ("compression.projection=0.5",),
}

STEPS = {"Shampoo": 11, "SOAP": 10}
"""Where the last step is to be one that renews: that is what is predicted."""
_FEWER = {"num_hidden_layers": "4", "vocab_size": "32064"}
SMALLER = {
    ("Llama, 1B", name): _FEWER
    for name in ("activations on the host", "activations in files", "optimizer on the host", "weights on the host")
}
"""Arguments that differ where the whole model wants more of the host's memory than a small machine has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A technique on a model, in bytes: (allocated, reserved)."""

    model: str
    technique: str
    predicted: tuple[int, int] | None
    ran: tuple[int, int] | None
    message: str = ""

    @property
    def off(self) -> tuple[float, float] | None:
        """Prediction over run, less 1."""
        if self.predicted is None or self.ran is None:
            return None
        return self.predicted[0] / self.ran[0] - 1, self.predicted[1] / self.ran[1] - 1


def rows(model: str, names: Sequence[str], gpu: Device, workers: int) -> Iterator[Row]:
    """All techniques on one model."""
    recorded: dict[str, Trace | DnnmemError] = {}
    jobs: list[tuple[str, Plan, tuple[int, int]]] = []
    requests = {name: _request(model, name) for name in names}
    for name in names:
        plan = change(Plan(), TECHNIQUES[name]) if TECHNIQUES[name] else Plan()
        asked = replace(requests[name], compute=plan.precision.compute)
        start = recorded.get(asked.to_json()) or recorded.setdefault(asked.to_json(), _recorded(asked, gpu))
        try:
            if isinstance(start, DnnmemError):
                raise start
            [planned] = rewrite(start, plan)
            held = replay_on(planned, gpu)
        except DnnmemError as error:
            yield Row(model=model, technique=name, predicted=None, ran=None, message=error.message)
            continue
        jobs.append((name, plan, (held.peak_allocated_bytes, held.peak_reserved_bytes)))
    runs = [(replace(requests[name], steps=STEPS.get(name)), plan) for name, plan, _ in jobs]
    for k, found in spread(partial(_verified, gpu=gpu), runs, workers=workers):
        name, _, predicted = jobs[k]
        peaks = found.peak_allocated_bytes, found.peak_reserved_bytes
        ran = peaks if found.outcome == "ran" and None not in peaks else None
        yield Row(model=model, technique=name, predicted=predicted, ran=ran, message=found.message)  # type: ignore[arg-type]


def _request(model: str, technique: str) -> Request:
    """What is run of a model."""
    whole = MODELS[model]
    return replace(whole, args={**whole.args, **SMALLER.get((model, technique), {})})


def _verified(job: tuple[Request, Plan], *, gpu: Device) -> Verified:
    """The run of a plan; how far its gradients are off is not asked here."""
    try:
        return verify(*job, gpu, timeout_seconds=600, cache=cache_folder(os.environ), gradients=False)
    except DnnmemError as error:
        return Verified(device="virtual", outcome="failed", message=error.message)


def _recorded(request: Request, gpu: Device) -> Trace | DnnmemError:
    try:
        return run(replace(request, device="fake", gpu=gpu.name), gpu=gpu, cache=cache_folder(os.environ))[0]
    except DnnmemError as error:
        return error


def table(done: Sequence[Row]) -> str:
    """By technique: the models it applies to, and how far the prediction is from the run."""
    lines = [
        "| technique | models | allocated: median | worst | reserved: median | worst | where | does not apply to |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in TECHNIQUES:
        mine = [row for row in done if row.technique == name]
        offs = {row.model: row.off for row in mine if row.off is not None}
        out = [row.model for row in mine if row.off is None]
        if not offs:
            lines += [f"| {name} | 0 | - | - | - | - | - | {', '.join(out)} |"] if mine else []
            continue
        worst = max(offs, key=lambda model: abs(offs[model][1]))
        cells = []
        for k in (0, 1):
            sizes = [abs(off[k]) for off in offs.values()]
            cells.append(f"{statistics.median(sizes):.2%} | {max(sizes):.2%}")
        lines.append(f"| {name} | {len(offs)} | {' | '.join(cells)} | {worst} | {', '.join(out) or '-'} |")
    reserved = [abs(row.off[1]) for row in done if row.off is not None]
    if reserved:
        near = sum(size <= 0.02 for size in reserved)
        lines.append(
            f"\n{len(reserved)} runs: reserved within 2 % in {near}, median {statistics.median(reserved):.2%}, "
            f"worst {max(reserved):.2%}. Where Llama rests on the host, it has 4 of its 16 layers and a quarter of its "
            "words."
        )
    return "\n".join(lines)


def load() -> list[Row]:
    """The rows that are kept."""
    if not KEPT.exists():
        return []
    with KEPT.open(encoding="utf-8", newline="") as file:
        return [
            Row(
                model=r["model"], technique=r["technique"], message=r["message"],
                predicted=_pair(r["predicted_allocated"], r["predicted_reserved"]),
                ran=_pair(r["ran_allocated"], r["ran_reserved"]),
            )
            for r in csv.DictReader(file)
        ]  # fmt: skip


def keep(done: Sequence[Row]) -> list[Row]:
    """Replace the kept rows by those of `done`, and return all, in order."""
    known = {(row.model, row.technique): row for row in (*load(), *done)}
    found = [known[m, t] for m in MODELS for t in TECHNIQUES if (m, t) in known]
    with KEPT.open("w", encoding="utf-8", newline="") as file:
        written = csv.writer(file, lineterminator="\n")
        written.writerow(_COLUMNS)
        for row in found:
            sizes = (*(row.predicted or ("", "")), *(row.ran or ("", "")))
            written.writerow((row.model, row.technique, *sizes, " ".join(_here(row.message).split())[:200]))
    return found


def _here(message: str) -> str:
    """Without the folder that the checkout is in."""
    return message.replace(f"{ROOT}{os.sep}", "")


def refusals(done: Sequence[Row]) -> str:
    """What does not apply, and why, where it was told: a line for each reason."""
    found: dict[str, list[str]] = {}
    for row in done:
        if row.off is None:
            target = _here(MODELS[row.model].target)
            reason = _here(row.message).replace(f" in {target}", "")
            found.setdefault(reason, []).append(f"{row.technique} ({row.model})")
    return "\n".join(f"- {', '.join(rows)}: {reason}" for reason, rows in found.items())


def _pair(allocated: str, reserved: str) -> tuple[int, int] | None:
    return (int(allocated), int(reserved)) if allocated else None


def main() -> int:
    """Run and print; --save also writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--gpu", default="h100-sxm-80gb")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", action="append", default=[], metavar="TECHNIQUE")
    parser.add_argument("--above", type=float, metavar="SHARE")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        keep([])
        _write()
        return 0
    kept = {(row.model, row.technique): row for row in load()}
    wanted = {
        (m, t)
        for m in asked.models
        for t in asked.only or TECHNIQUES
        if not (asked.missing and (m, t) in kept) and (asked.above is None or _is_off(kept.get((m, t)), asked.above))
    }
    done: list[Row] = []
    for model in asked.models:
        names = [name for name in TECHNIQUES if (model, name) in wanted]
        for row in rows(model, names, find_device(asked.gpu), asked.workers) if names else ():
            done.append(row)
            _print(row)
            if asked.save:
                keep([row])
    print("\n" + table(keep(done) if asked.save else done))
    if asked.save:
        _write()
    return 0


def _is_off(row: Row | None, share: float) -> bool:
    return row is not None and row.off is not None and abs(row.off[1]) > share


def _write() -> None:
    """Put what is kept into the documentation."""
    kept = load()
    before, rest = DOCS.read_text("utf-8").split(START)
    found = f"{table(kept)}\n\nLeft out:\n\n{refusals(kept)}"
    DOCS.write_text(f"{before}{START}\n{found}\n{END}{rest.split(END)[1]}", "utf-8")


def _print(row: Row) -> None:
    if row.predicted is None or row.ran is None or row.off is None:
        print(f"| {row.model} | {row.technique} | {' '.join(row.message.split())[:240]} |", flush=True)
        return
    cells = [f"{p / MIB:.1f} | {d:+.2%}" for p, d in zip(row.predicted, row.off, strict=True)]
    print(f"| {row.model} | {row.technique} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
