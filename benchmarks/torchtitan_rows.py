"""Does the virtual GPU need the memory that torchtitan's authors read off real ones? One row for each published run.

    git clone https://github.com/pytorch/torchtitan /tmp/torchtitan
    python benchmarks/torchtitan_rows.py /tmp/torchtitan [ROW ...]

Each row of torchtitan/rows.toml names a commit, its configuration and the published peak. Its train.py runs unmodified
as rank 0 of all ranks (torchtitan/harness.py), and the peak of reserved memory in its log is compared. The torch of
that time decides too, so rows of another torch than the installed one are left out; --save puts what ran among the
results in tests/accuracy/data, --table prints those as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from dnnmem.estimator.devices import find_device
from dnnmem.profilers.virtual_gpu.launch import prepare

HERE = Path(__file__).parent / "torchtitan"
ROWS = HERE / "rows.toml"
RESULTS = Path(__file__).parents[1] / "tests" / "accuracy" / "data" / "torchtitan_rows.csv"
STEPS = 10
"""torchtitan logs step 1 and every tenth; peaks no longer change after step 2."""
READINGS = ("model", "first", "later")
"""What the harness reads, in order."""
LIMIT_SECONDS = 900
GIB = 2**30
_QUIET = {"profiling": {"enable_profiling": False}, "metrics": {"enable_tensorboard": False, "log_freq": STEPS}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published run."""

    name: str
    """Name of its table in rows.toml."""
    source: str
    """Where the numbers are published."""
    commit: str
    """torchtitan's commit."""
    torch: str
    """`2.9`: the release nearest to the nightly of that day."""
    config: str
    """Configuration file of that commit."""
    gpus: int
    """Ranks of the job."""
    words: int = 128256
    """Size of the vocabulary."""
    device: str = "h100-sxm-96gb-hbm2e-500w"
    """GPU, by its name in dnnmem's tables."""
    allocator: str | None = None
    """Settings of PyTorch's allocator; None = those of the commit's run_train.sh."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Changes to the configuration."""
    published: Mapping[str, float] = field(default_factory=dict)
    """GiB by reading, see `READINGS`."""
    out_of_memory: bool = False
    """The source says that the run ended in that."""
    note: str = ""
    """What a reader should know of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One reading of a row, published and reproduced."""

    row: str
    reading: str
    """`model`, `first`, `later`; or `out of memory`, with what was reserved then."""
    published_gib: str
    """As its source prints it; empty where the run ran out of memory."""
    reproduced_gib: str
    """Empty if the run ended before."""
    relative_error: str
    """Of the reproduced number; empty without two numbers."""
    kept: bool
    """Within 0.2 %, or out of memory where that is published."""
    torch: str
    said: str
    """What stopped the run, if anything did."""


def load_rows() -> list[Row]:
    """All rows of rows.toml."""
    tables = tomllib.loads(ROWS.read_text(encoding="utf-8"))
    return [Row(name=name, **table) for name, table in tables.items()]


def check_out(history: Path, commit: str, folder: Path) -> None:
    """Write torchtitan's tree at `commit` into `folder`: what runs, without its tests and pictures."""
    wanted = git(history, "ls-tree", "--name-only", commit, "--", "torchtitan", "train.py", "train_configs").split()
    git(history, f"--work-tree={folder}", "checkout", "-q", commit, "--", *wanted, index=folder / "index")


def git(history: Path, *words: str, index: Path | None = None) -> str:
    """What a git command says about `history`, which it leaves as it is."""
    place = history if (history / "HEAD").exists() else history / ".git"
    environment = {**os.environ, **({"GIT_INDEX_FILE": str(index)} if index else {})}
    command = ["git", f"--git-dir={place}", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def allocator_settings(history: Path, row: Row) -> dict[str, str]:
    """What the row, or else the commit's own run_train.sh, tells PyTorch's allocator.

    The script says PYTORCH_ALLOC_CONF since August 2025. torch 2.9.1 does not read expandable segments from that, and
    2.10.0 does; docs/accuracy.md says what that means for the rows.
    """
    if row.allocator is not None:
        return {"PYTORCH_CUDA_ALLOC_CONF": row.allocator}
    script = git(history, "ls-tree", "--name-only", row.commit, "--", "run_train.sh", "run_llama_train.sh").split()[0]
    told = (line.rstrip(" \\").partition("=") for line in git(history, "show", f"{row.commit}:{script}").splitlines())
    return {name: value.strip('"') for name, _, value in told if name.endswith("ALLOC_CONF")}


def changed(config: Mapping[str, Any], *changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A configuration with other values in its tables.

    >>> changed({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}, "b": {"z": 4}})
    {'a': {'x': 3, 'y': 2}, 'b': {'z': 4}}
    """
    merged = {name: dict(table) for name, table in config.items()}
    for change in changes:
        for name, table in change.items():
            merged[name] = {**merged.get(name, {}), **table}
    return merged


def toml_text(config: Mapping[str, Any], prefix: str = "") -> str:
    """`config` as TOML; its values are texts, numbers, truths and lists of them, which JSON writes alike."""
    plain = "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items() if not isinstance(value, dict))
    tables = (
        f"[{prefix}{key}]\n{toml_text(value, f'{prefix}{key}.')}"
        for key, value in config.items()
        if isinstance(value, dict)
    )
    return plain + "".join(tables)


def launch(row: Row) -> dict[str, str]:
    """The environment of a process that sees eight of the row's GPUs."""
    device = find_device(row.device)
    plain = {name: value for name, value in os.environ.items() if not name.endswith("ALLOC_CONF")}
    return dict(prepare(device, plain, count=min(row.gpus, 8)).environment)


def run(row: Row, history: Path, log: Path) -> tuple[list[dict[str, Any]], str]:
    """The readings of a run, in order, and the last line of what it said if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        source, readings = Path(folder, "source"), Path(folder, "readings.jsonl")
        source.mkdir()
        check_out(history, row.commit, source)
        published = tomllib.loads((source / row.config).read_text(encoding="utf-8"))
        config = Path(folder, "config.toml")
        config.write_text(toml_text(changed(published, _QUIET, {"training": {"steps": STEPS}}, row.settings)))
        ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(row.gpus), "LOCAL_WORLD_SIZE": str(min(row.gpus, 8))}
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "OMP_NUM_THREADS": "1"}
        environment = {**launch(row), **ranks, **meeting, **allocator_settings(history, row)}
        command = [sys.executable, str(HERE / "harness.py"), str(source), str(row.words), str(readings)]
        command += ["--job.config_file", str(config)]
        with log.open("w") as said:
            try:
                subprocess.run(
                    command, cwd=source, env=environment, stdout=said, stderr=said, check=True, timeout=LIMIT_SECONDS
                )
                reason = ""
            except subprocess.TimeoutExpired:
                reason = f"no end after {LIMIT_SECONDS} s"
            except subprocess.CalledProcessError as error:
                reason = _last_error(log) or f"exit code {error.returncode}"
        lines = readings.read_text(encoding="utf-8").splitlines() if readings.exists() else []
        return [json.loads(line) for line in lines], reason


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "Error:" in line or line.startswith("dnnmem")]
    return errors[-1][:300] if errors else ""


def judge(row: Row, readings: list[dict[str, Any]], said: str, torch: str) -> Iterable[Result]:
    """Each published reading of a row beside the one that ran."""
    short = next((reading for reading in readings if "out_of_memory" in reading), None)
    if row.out_of_memory:
        reached = f"{readings[-1]['reserved_bytes'] / GIB:.3f}" if readings else ""
        yield Result(
            row=row.name, reading="out of memory", published_gib="", reproduced_gib=reached, relative_error="",
            kept=short is not None, torch=torch, said="" if short else said,
        )  # fmt: skip
    said = f"out of memory: {short['out_of_memory'][:200]}" if short else said
    usual = [reading for reading in readings if "out_of_memory" not in reading]
    for name, published in row.published.items():
        index = READINGS.index(name)
        reproduced = usual[index]["reserved_bytes"] / GIB if index < len(usual) else None
        error = None if reproduced is None else reproduced / published - 1
        yield Result(
            row=row.name, reading=name, published_gib=f"{published:g}",
            reproduced_gib="" if reproduced is None else f"{reproduced:.3f}",
            relative_error="" if error is None else f"{error:+.5f}",
            kept=error is not None and abs(error) <= 0.002, torch=torch, said=said,
        )  # fmt: skip


def save(results: list[Result]) -> None:
    """Put `results` in place of what was known of the same rows."""
    named = {result.row for result in results}
    known = [*(result for result in load_results() if result.row not in named), *results]
    order = {row.name: place for place, row in enumerate(load_rows())}
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(result) for result in sorted(known, key=lambda result: order[result.row]))


def load_results() -> list[Result]:
    """What was saved; nothing where nothing was."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [Result(**{**line, "kept": line["kept"] == "True"}) for line in csv.DictReader(file)]


def table(results: Iterable[Result]) -> str:
    """The saved results as Markdown, one line a reading."""
    rows = {row.name: row for row in load_rows()}
    lines = ["| run | GPUs | torch | reading | published, GiB | reproduced | error |", "|---|---|---|---|---|---|---|"]
    for result in results:
        published = result.published_gib or "out of memory"
        verdict = "as published" if result.kept else "no"
        error = f"{float(result.relative_error):+.2%}" if result.relative_error else verdict
        lines.append(
            f"| {result.row} | {rows[result.row].gpus} | {result.torch} | {result.reading} | {published} "
            f"| {result.reproduced_gib or '-'} | {error} |"
        )
    return "\n".join(lines)


def main() -> int:
    """1 if a row that ran is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("history", type=Path, nargs="?", help="a clone of torchtitan, or its git directory")
    parser.add_argument("rows", nargs="*", help="names in rows.toml; all of the installed torch if none")
    parser.add_argument("--save", action="store_true", help=f"put the results into {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the saved results as Markdown")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()), help="where the runs' output goes")
    chosen = parser.parse_args()
    if chosen.table:
        print(table(load_results()))
        return 0
    if chosen.history is None:
        parser.error("name a clone of torchtitan: git clone https://github.com/pytorch/torchtitan")
    torch, kept = version("torch"), True
    for row in load_rows():
        if (row.name not in chosen.rows) if chosen.rows else not torch.startswith(f"{row.torch}."):
            continue
        readings, said = run(row, chosen.history, chosen.logs / f"{row.name}.log")
        results = list(judge(row, readings, said, torch))
        for result in results:
            print(" ".join(f"{value!s:<14}" for value in dataclasses.astuple(result)), flush=True)
        kept = kept and all(result.kept for result in results)
        if chosen.save:
            save(results)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
