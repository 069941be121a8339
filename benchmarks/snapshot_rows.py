"""The virtual GPU against public memory snapshots: the scripts that wrote them run again, and both histories compared.

    git clone https://github.com/Wedsonlin/assignment2-systems
    git clone https://github.com/kkaitlyn111/cs336-a2-systems
    git clone https://github.com/kkaitlyn111/cs336-assignment1
    pip install torch==2.11.0 einops einx jaxtyping        # Python 3.12; torch 2.6.0 for the runs of kkaitlyn111
    python benchmarks/snapshot_rows.py FOLDER_OF_CLONES [RUN ...] [--save]

Students of a course published what `torch.cuda.memory._dump_snapshot` wrote on their GPUs, beside the scripts that call
it. Each run below is such a script at its commit, on a virtual GPU; it writes its snapshots here as it did there.
Compared are allocations, frees and segments, one by one in kind and size, and both peaks. Runs of another torch than
the installed one are left out. --save puts the results into tests/accuracy/data, --table prints those as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from dnnmem.estimator.allocator_settings import AllocatorSettings, block_bytes
from dnnmem.profilers.snapshot import Call, load_snapshot
from dnnmem.profilers.virtual_gpu.launch import prepare

RESULTS = Path(__file__).parents[1] / "tests" / "accuracy" / "data" / "snapshot_rows.csv"
ACTIONS = ("alloc", "free_requested", "free_completed", "segment_alloc", "segment_free")
LIMIT = 0.002
"""Largest error of the peak of allocated memory."""
WEDSONLIN, SYSTEMS, BASICS = "assignment2-systems", "cs336-a2-systems", "cs336-assignment1"
MEDIUM = ("--d_model", "1024", "--num_layers", "24", "--num_heads", "16", "--d_ff", "4096", "--model_name", "medium")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a script, and the snapshots that it writes."""

    sources: Mapping[str, str]
    """Folder of a clone -> commit; later ones add to the first, which has the snapshots."""
    roots: tuple[str, ...]
    """Folders that Python looks for modules in."""
    command: tuple[str, ...]
    folder: str
    """Where it is started."""
    gpu: str
    torch: str
    snapshots: tuple[str, ...]
    """Files that it writes, and that its repository holds."""
    changes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By file: a line that the author switched between runs, and what it was."""


def wedsonlin(context: int, kind: str, autocast: str) -> Run:
    """A transformer of 24 layers, batch 4, on a GeForce (which one is not said: 4090 and 5090 give the same events)."""
    pattern = {"training": "full-training-step", "inference": "forward-only"}[kind]
    options = ("--context_length", str(context), "--memory-profile", "true", "--pattern", pattern)
    return Run(
        sources={WEDSONLIN: "8630bcf"},
        roots=("", "cs336-basics"),
        command=("../cs336_systems/nsys_profile.py", *MEDIUM, *options, "--autocast", autocast),
        folder="scripts",
        gpu="rtx-4090-24gb",
        torch="2.11",
        snapshots=(f"results/medium_{context}_{kind}_memory_snapshot.pickle",),
    )


def kkaitlyn(mixed: str) -> Run:
    """A transformer of 2.7 billion parameters on an H100: forward, then steps, at three lengths in one process."""
    suffix = "mixed" if mixed == "True" else ""
    passes = [f"ctx{context}_{kind}_{suffix}" for kind in ("forward", "fullstep") for context in (128, 256, 512)]
    return Run(
        sources={SYSTEMS: "ebf6548", BASICS: "e6dc141"},
        roots=("",),
        command=("-m", "cs336_systems.benchmark"),
        folder=".",
        gpu="h100-sxm-80gb",
        torch="2.6",
        snapshots=tuple(f"memory_files/memory_{name}.pickle" for name in passes),
        changes={"cs336_systems/benchmark.py": ("    mixed_precision = True", f"    mixed_precision = {mixed}")},
    )


RUNS = {
    "wedsonlin-128-training": wedsonlin(128, "training", "false"),
    "wedsonlin-256-training": wedsonlin(256, "training", "false"),
    "wedsonlin-512-training": wedsonlin(512, "training", "true"),
    "wedsonlin-1024-training": wedsonlin(1024, "training", "true"),
    "wedsonlin-128-inference": wedsonlin(128, "inference", "false"),
    "wedsonlin-256-inference": wedsonlin(256, "inference", "false"),
    "wedsonlin-512-inference": wedsonlin(512, "inference", "true"),
    "wedsonlin-1024-inference": wedsonlin(1024, "inference", "false"),
    "kkaitlyn-mixed": kkaitlyn("True"),
    "kkaitlyn-full": kkaitlyn("False"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One snapshot, published and reproduced."""

    run: str
    snapshot: str
    """Its file."""
    torch: str
    events: int
    """In the published one."""
    equal_events: int
    """Of these, how many are the same here, in kind and size and place."""
    published_allocated_bytes: int
    reproduced_allocated_bytes: int
    published_reserved_bytes: int
    reproduced_reserved_bytes: int

    @property
    def error(self) -> float:
        """Relative error of the peak of allocated memory."""
        return self.reproduced_allocated_bytes / self.published_allocated_bytes - 1

    @property
    def reserved_error(self) -> float:
        """Relative error of the peak of reserved memory."""
        return self.reproduced_reserved_bytes / self.published_reserved_bytes - 1

    @property
    def kept(self) -> bool:
        """All events are equal, and the peak of allocated memory is within `LIMIT`."""
        return self.equal_events == self.events and abs(self.error) <= LIMIT


def git(clone: Path, *arguments: str) -> bytes:
    """What git prints."""
    return subprocess.run(["git", "-C", str(clone), *arguments], check=True, stdout=subprocess.PIPE).stdout  # noqa: S607


def check_out(run: Run, clones: Path, folder: Path) -> None:
    """The Python files of all sources at their commits, with the metadata of a package that is installed."""
    for clone, commit in run.sources.items():
        for name in git(clones / clone, "ls-tree", "-r", "--name-only", commit).decode().splitlines():
            target = folder / name
            if name.endswith(".py") and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(git(clones / clone, "show", f"{commit}:{name}"))
    for name, (old, new) in run.changes.items():
        path = folder / name
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    for package in ("cs336_basics", "cs336_systems"):
        (folder / f"{package}-1.dist-info").mkdir()
        (folder / f"{package}-1.dist-info" / "METADATA").write_text(f"Name: {package}\nVersion: 1\n", "utf-8")
    for name in (run.folder, *(str(Path(snapshot).parent) for snapshot in run.snapshots)):
        (folder / name).mkdir(exist_ok=True)


def reproduce(name: str, run: Run, clones: Path) -> list[Result]:
    """Run the script in a temporary folder; one result for each snapshot that its repository holds."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        check_out(run, clones, folder)
        environment = {**prepare(run.gpu, os.environ).environment, "OMP_NUM_THREADS": "1"}
        roots = [str(folder / root) for root in run.roots]
        environment["PYTHONPATH"] = ":".join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
        subprocess.run([sys.executable, *run.command], cwd=folder / run.folder, env=environment, check=True)
        first = clones / next(iter(run.sources))
        results = []
        for snapshot in run.snapshots:
            published = folder / "published.pickle"
            try:
                published.write_bytes(git(first, "show", f"HEAD:{snapshot}"))
            except subprocess.CalledProcessError:
                continue  # kept elsewhere, for its size
            results.append(judge(name, snapshot, published, folder / snapshot))
        return results


def judge(run: str, snapshot: str, published: Path, reproduced: Path) -> Result:
    """Compare two snapshots."""
    there, here = _history(published), _history(reproduced)
    equal = sum((a.action, a.nbytes) == (b.action, b.nbytes) for a, b in zip(there, here, strict=False))
    allocated_there, reserved_there = _peaks(published)
    allocated_here, reserved_here = _peaks(reproduced)
    return Result(
        run=run,
        snapshot=Path(snapshot).name,
        torch=version("torch"),
        events=max(len(there), len(here)),
        equal_events=equal,
        published_allocated_bytes=allocated_there,
        reproduced_allocated_bytes=allocated_here,
        published_reserved_bytes=reserved_there,
        reproduced_reserved_bytes=reserved_here,
    )


def _history(path: Path) -> list[Call]:
    return [call for call in load_snapshot(path).history if call.action in ACTIONS]


def _peaks(path: Path) -> tuple[int, int]:
    """Most allocated and most reserved during the history, by undoing it from the end."""
    segments = load_snapshot(path).segments
    allocated = sum(b.nbytes for segment in segments for b in segment.blocks if b.allocated)
    reserved = sum(segment.nbytes for segment in segments)
    peaks = allocated, reserved
    for call in reversed(_history(path)):
        if call.action in ("alloc", "free_completed"):
            allocated += block_bytes(call.nbytes, AllocatorSettings()) * (-1 if call.action == "alloc" else 1)
        elif call.action.startswith("segment"):
            reserved += call.nbytes * (-1 if call.action == "segment_alloc" else 1)
        peaks = max(peaks[0], allocated), max(peaks[1], reserved)
    return peaks


def load_results() -> list[Result]:
    """What was saved."""
    texts = {"run", "snapshot", "torch"}
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [
            Result(**{name: text if name in texts else int(text) for name, text in line.items()})
            for line in csv.DictReader(file)
        ]


def save(results: Iterable[Result]) -> None:
    """Put `results` among those that were saved, in place of older ones of the same snapshots."""
    known = {(r.run, r.snapshot): r for r in (load_results() if RESULTS.exists() else [])}
    known |= {(r.run, r.snapshot): r for r in results}
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(r) for _, r in sorted(known.items()))


def table(results: Iterable[Result]) -> str:
    """The results as Markdown."""
    lines = [
        "| snapshot | torch | events | equal | peak allocated, MiB | reproduced | error | reserved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        name = r.snapshot.removesuffix(".pickle").removesuffix("_memory_snapshot")
        sizes = f"{r.published_allocated_bytes / 2**20:,.1f} | {r.reproduced_allocated_bytes / 2**20:,.1f}"
        counts = f"{r.events:,} | {r.equal_events:,}"
        lines.append(f"| {name} | {r.torch} | {counts} | {sizes} | {r.error:+.3%} | {r.reserved_error:+.2%} |")
    return "\n".join(lines)


def main() -> int:
    """1 if any snapshot is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clones", type=Path, nargs="?", default=Path(), help="folder of the three clones")
    parser.add_argument("runs", nargs="*", help="only these")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the saved results as Markdown")
    chosen = parser.parse_args()
    if chosen.table:
        print(table(load_results()))
        return 0
    results = []
    for name in chosen.runs or RUNS:
        if version("torch").startswith(RUNS[name].torch + "."):
            results += reproduce(name, RUNS[name], chosen.clones.resolve())
            print(table(results).splitlines()[-1], flush=True)
    if chosen.save:
        save(results)
    return 0 if all(result.kept for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
