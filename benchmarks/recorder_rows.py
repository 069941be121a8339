"""Is a recorded step what the allocator does when nobody watches? Some forty models that the recorder was not tuned on.

    pip install '.[hf,vision,test]'
    python benchmarks/recorder_rows.py [MODEL ...] [--save]

Each model runs on a virtual GPU in a process of its own: three steps bare, three steps recorded. Compared are the
allocations and frees of the third, one by one; the peak of reserved memory with what playing the trace from process
start reserves; and the bytes at the peak that have an owner. --save writes the results to tests/accuracy/data, --table
prints those as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dnnmem.profilers.virtual_gpu.launch import prepare

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "accuracy" / "data" / "recorder_rows.csv"
GPU = "h100-sxm-80gb"
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One model."""

    model: str
    events: int
    """Of the bare step."""
    equal: bool
    """The recorded step has the same, in the same order."""
    reserved_bytes: int
    """Peak of the bare step."""
    replayed_bytes: int
    """Peak of the trace, played."""
    unlabelled: float
    """Share of the bytes at the peak that have no owner."""
    torch: str

    @property
    def kept(self) -> bool:
        """All that was promised."""
        return self.equal and self.reserved_bytes == self.replayed_bytes and self.unlabelled < 0.01


def measure(model: str) -> Result:
    """Compare in this process, which has a GPU."""
    from tests.accuracy.unseen.compare import compare
    from tests.accuracy.unseen.models import AUTOCAST, unseen_target

    found = compare(unseen_target(model), autocast=model in AUTOCAST)
    return Result(
        model=model,
        events=len(found.bare),
        equal=found.bare == found.told,
        reserved_bytes=found.reserved_bytes,
        replayed_bytes=found.replayed_bytes,
        unlabelled=found.unlabelled,
        torch=version("torch"),
    )


def run(model: str) -> Result:
    """`measure` in a process of its own, on a virtual GPU; ends the benchmark if it fails."""
    environment = {**prepare(GPU, os.environ).environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", __file__, "--here", model]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Result(**json.loads(output.splitlines()[-1]))


def load_results() -> list[Result]:
    """What was saved."""
    texts = {"model", "torch"}
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [
            Result(**{name: text if name in texts else json.loads(text.lower()) for name, text in line.items()})
            for line in csv.DictReader(file)
        ]


def save(results: Iterable[Result]) -> None:
    """Write the results anew."""
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(dataclasses.asdict, results))


def table(results: Iterable[Result]) -> str:
    """The results as Markdown."""
    lines = ["| model | events | equal | reserved, MiB | replayed, MiB | without owner |", "|---|---|---|---|---|---|"]
    for r in results:
        sizes = f"{r.reserved_bytes / MIB:.0f} | {r.replayed_bytes / MIB:.0f}"
        lines.append(f"| {r.model} | {r.events} | {'yes' if r.equal else 'no'} | {sizes} | {r.unlabelled:.1%} |")
    return "\n".join(lines)


def main() -> int:
    """1 if any model breaks a promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="only these")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the saved results as Markdown")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.here:
        print(json.dumps(dataclasses.asdict(measure(chosen.here))))
        return 0
    if chosen.table:
        print(table(load_results()))
        return 0
    sys.path.insert(0, str(ROOT))
    from tests.accuracy.unseen.models import UNSEEN

    results = []
    for model in chosen.models or UNSEEN:
        results.append(run(model))
        print(table(results[-1:]).splitlines()[-1], flush=True)
    if chosen.save:
        save(results)
    return 0 if all(result.kept for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
