"""Does a plan need what `dnnmem recommend` says? Plans of nine models, applied and run on a virtual GPU.

    python benchmarks/verify_rows.py [--cluster h100:8] [--best 5] [--spread N] [--json FILE] [MODEL ...]

Of each model: the best plans, as `recommend --verify` runs them, and with --spread N up to N more from all over the
space, chosen so that every technique is there, and as many pairs of techniques as N allows; those that change training
too. Rank 0 runs, alone; a line for each plan: peaks of the allocator in MiB, predicted, and how far the run was off.
An optimizer on the host really takes the host's memory, 16 bytes a parameter: --without offload-optimizer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.cluster import Cluster, find_cluster
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.recommend import Wanted, budget_of, find, scope_of
from dnnmem.estimator.search import Tally
from dnnmem.estimator.search_cost import Costs
from dnnmem.estimator.techniques import Choice, choices
from dnnmem.estimator.techniques.precision import to_record
from dnnmem.estimator.time_model import load
from dnnmem.profilers.record_sizes import record_sizes
from dnnmem.profilers.request import Request
from dnnmem.profilers.verify import verify

SAMPLES = Path(__file__).parents[1] / "sample_models"
MIB = 2**20
LLAMA_1B = {
    "hidden_size": "2048", "num_hidden_layers": "16", "num_attention_heads": "32", "num_key_value_heads": "8",
    "intermediate_size": "8192", "vocab_size": "128256", "max_position_embeddings": "2048",
}  # fmt: skip
MODELS = {
    "GPT-2": Request(target=str(SAMPLES / "gpt.py"), batch_size=8, seq_len=1024),
    "Llama, 1B": Request(target="hf:llama", batch_size=4, seq_len=2048, args=LLAMA_1B),
    "ViT-B/16": Request(target="torchvision:vit_b_16", batch_size=64),
    "ResNet-50": Request(target="torchvision:resnet50", batch_size=64),
    "U-Net": Request(target=str(SAMPLES / "unet.py"), batch_size=16),
    "BERT": Request(target="hf:bert", batch_size=16, seq_len=512),
    "T5": Request(target="hf:t5", batch_size=16, seq_len=512),
    "LSTM": Request(target=str(SAMPLES / "lstm.py"), batch_size=64, seq_len=128),
    "MoE": Request(target=str(SAMPLES / "moe.py"), batch_size=8, seq_len=512),
}
ALTERING = frozenset({"precision", "optimizer"})
NOT_RUN = frozenset({"adamw8bit"})
"""Needs torchao, whose update is compiled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One plan of one model, in bytes."""

    model: str
    plan: str
    techniques: tuple[str, ...]
    kind: str
    """`best` or `spread`."""
    predicted: tuple[int, int]
    """Allocated, reserved."""
    ran: tuple[int, int] | None
    """The same of the run; None if there was none."""
    message: str = ""

    @property
    def off(self) -> tuple[float, float]:
        """Run over prediction, less 1: allocated, reserved."""
        ran = self.ran or self.predicted
        return ran[0] / self.predicted[0] - 1, ran[1] / self.predicted[1] - 1


def rows(name: str, cluster: Cluster, best: int, spread: int, without: frozenset[str]) -> Iterator[Row]:
    """The model's plans, run; those of the spread without some techniques."""
    request = replace(MODELS[name], device="fake", gpu=cluster.device.name)
    types = to_record(ALTERING, (), ()) if spread else ()
    recorded = record_sizes(request, types, cache=cache_folder(os.environ))
    costs = Costs(recorded=recorded, cluster=cluster, model=load(cluster.device))
    wanted = Wanted(cluster=cluster, top=best)
    found = find(costs, choices(scope_of(recorded, wanted)), wanted, Tally())[:best] if best else []
    for priced in found:
        yield _row(name, "best", priced.choice, costs, request)
    if not spread:
        return
    wide = replace(wanted, allow=ALTERING, without=NOT_RUN | without)
    for choice in spread_over(choices(scope_of(recorded, wide)), costs, budget_of(cluster, wide.headroom), spread):
        yield _row(name, "spread", choice, costs, request)


def spread_over(space: Sequence[Choice], costs: Costs, budget: float, most: int) -> Iterator[Choice]:
    """Plans that fit and together have each technique, then each pair of them, of as few techniques as that takes."""
    seen: set[frozenset[str]] = set()
    left = [choice for choice in space if choice.count <= 4]
    while left and most:
        chosen = max(left, key=lambda choice: _gain(choice, seen))
        left.remove(chosen)
        if _gain(chosen, seen)[0] <= 0:
            return
        try:
            if chosen.planned_share:
                chosen = replace(chosen, plan=costs.planned(chosen.plan, chosen.planned_share * budget / 4))
            estimate = costs.exact(chosen.plan)
        except DnnmemError:
            continue
        if (estimate.peak_reserved_bytes or 0) > budget:
            continue
        seen.update(_groups(chosen))
        most -= 1
        yield chosen


def _groups(choice: Choice) -> Iterable[frozenset[str]]:
    names = sorted({technique.name for technique in choice.techniques if technique.name})
    return [frozenset(group) for size in (1, 2) for group in combinations(names, size)]


def _gain(choice: Choice, seen: set[frozenset[str]]) -> tuple[float, int]:
    new = [group for group in _groups(choice) if group not in seen]
    return sum(10.0 if len(group) == 1 else 1.0 for group in new) / (1 + choice.count), -choice.count


def _row(name: str, kind: str, choice: Choice, costs: Costs, request: Request) -> Row:
    plan = choice.plan
    estimate = costs.exact(plan)
    batch = plan.batch.micro_batch or request.batch_size
    message, ran = "", None
    try:
        found = verify(
            replace(request, batch_size=batch, device="auto"), plan, costs.cluster.device, timeout_seconds=300,
            ranks_per_node=costs.cluster.gpus_per_node, cache=cache_folder(os.environ),
        )  # fmt: skip
        message = found.message
        if found.peak_allocated_bytes and found.peak_reserved_bytes:
            ran = found.peak_allocated_bytes, found.peak_reserved_bytes
    except DnnmemError as error:
        message = error.message
    words = ", ".join(technique.words for technique in choice.techniques if technique.words)
    if plan.remat.segments:
        words += f" ({plan.remat.segments})"
    return Row(
        model=name, plan=words, techniques=tuple(t.name for t in choice.techniques if t.name), kind=kind,
        predicted=(estimate.peak_allocated_bytes or 0, estimate.peak_reserved_bytes or 0), ran=ran, message=message,
    )  # fmt: skip


def _print(row: Row) -> None:
    if row.ran is None:
        print(f"| {row.model} | {row.plan} | did not run: {' '.join(row.message.split())[:300]} |", flush=True)
        return
    cells = [f"{p / MIB:.1f} | {d:+.2%}" for p, d in zip(row.predicted, row.off, strict=True)]
    print(f"| {row.model} | {row.plan} | {' | '.join(cells)} |", flush=True)


def _summary(done: Sequence[Row]) -> None:
    print("\n| model | plans | allocated: median | worst | reserved: median | worst |\n|---|---|---|---|---|---|")
    for name in dict.fromkeys(row.model for row in done):
        mine = [row.off for row in done if row.model == name and row.ran]
        cells = []
        for k in (0, 1):
            sizes = [abs(off[k]) for off in mine] or [0.0]
            cells.append(f"{statistics.median(sizes):.2%} | {max(sizes):.2%}")
        print(f"| {name} | {len(mine)} | {' | '.join(cells)} |")


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--cluster", default="h100-sxm-80gb:8")
    parser.add_argument("--best", type=int, default=5)
    parser.add_argument("--spread", type=int, default=0)
    parser.add_argument("--without", action="append", default=[], metavar="TECHNIQUE")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    print("| model | plan | allocated | run | reserved | run |\n|---|---|---|---|---|---|")
    done: list[Row] = []
    for name in asked.models:
        for row in rows(name, find_cluster(asked.cluster), asked.best, asked.spread, frozenset(asked.without)):
            done.append(row)
            _print(row)
    _summary(done)
    if asked.json:
        asked.json.write_text(json.dumps([_as_json(row) for row in done], indent=1), "utf-8")
    return 0


def _as_json(row: Row) -> dict[str, Any]:
    return asdict(row) | {"off": row.off}


if __name__ == "__main__":
    sys.exit(main())
