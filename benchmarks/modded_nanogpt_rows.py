"""Does the virtual GPU need the memory that modded-nanogpt's public logs show? One row for each logged run.

    git clone https://github.com/KellerJordan/modded-nanogpt /tmp/modded-nanogpt
    python benchmarks/modded_nanogpt_rows.py /tmp/modded-nanogpt [ROW ...]

A log begins with the whole source of its train_gpt.py and ends with the peaks of allocated and reserved memory. Each
row of modded_nanogpt/rows.toml names a log. Its source runs unmodified by `dnnmem run`, as rank 0 of 8 H100; only the
data are others, random words in the same files. The torch of that time decides too, so rows of another torch than the
installed one are left out; --save puts what ran among the results in tests/accuracy/data, --table prints those as
Markdown.
"""

from __future__ import annotations

import argparse
import ast
import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROWS = Path(__file__).parent / "modded_nanogpt" / "rows.toml"
RESULTS = Path(__file__).parents[1] / "tests" / "accuracy" / "data" / "modded_nanogpt_rows.csv"
COMMIT = "f411b3d3"
"""Of modded-nanogpt, whose `records` are read."""
RULER = "=" * 100
"""Ends the source in a log."""
LIMIT_SECONDS = 3600
KEPT = {"allocated": 0.001, "reserved": 0.03}
"""Largest error of a kept reading. Equal runs of one record differ by up to 1.5 % in what they reserve."""
MIB = 2**20
_MAGIC, _VERSION, _HEADER = 20240520, 1, 256
"""Of a shard: numbers of 32 bits, the third is how many words of 16 bits follow."""
_FIRST_WORD = 50256
"""Begins each text."""
_TEXT = 1200
"""Words of a text."""
_SHARDS = {"fineweb_train_000001": 40_000_000, "fineweb_train_000002": 40_000_000, "fineweb_val_000000": 11_000_000}
"""Words by file: 137 steps of 8 x 64 x 1024, and a validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One logged run."""

    name: str
    """Name of its table in rows.toml."""
    log: str
    """Its log below `records`."""
    written_with: str
    """torch, as the log names it."""
    torch: str
    """`2.9`: the release nearest to it."""
    steps: int
    """Training steps to run, its warm-up counted: enough that a validation comes after the first update."""
    allocated: int
    """Peak, MiB."""
    reserved: int | None = None
    """Peak, MiB; None = the log has none."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that this release needs to run it at all."""
    note: str = ""
    """What a reader should know of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One reading of a row, logged and reproduced."""

    row: str
    reading: str
    """`allocated` or `reserved`."""
    logged_mib: int
    reproduced_mib: str
    """Empty if the run ended before."""
    relative_error: str
    """Of the reproduced number; empty without one."""
    kept: bool
    """Within `KEPT`."""
    torch: str
    said: str
    """What stopped the run, if anything did."""


def load_rows() -> list[Row]:
    """All rows of rows.toml."""
    tables = tomllib.loads(ROWS.read_text(encoding="utf-8"))
    return [Row(name=name, **table) for name, table in tables.items()]


def source_of(log: str) -> str:
    r"""The program at the head of a log, up to the ruler.

    >>> source_of("import torch\n" + RULER + "\nRunning Python 3.12.7")
    'import torch\n'
    """
    return log.partition(f"{RULER}\n")[0]


def read_log(history: Path, row: Row) -> str:
    """A log's text out of a clone or its git directory."""
    place = history if (history / "HEAD").exists() else history / ".git"
    command = ["git", f"--git-dir={place}", "show", f"{COMMIT}:records/{row.log}"]
    return subprocess.run(command, check=True, capture_output=True).stdout.decode(errors="replace")


def write_data(folder: Path) -> None:
    """Files of random words in the format that the programs read; the same on every call."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for name, count in _SHARDS.items():
        words = drawn.integers(0, _FIRST_WORD, count, dtype=np.uint16)
        words[::_TEXT] = _FIRST_WORD
        header = np.zeros(_HEADER, dtype=np.int32)
        header[:3] = _MAGIC, _VERSION, count
        (folder / f"{name}.bin").write_bytes(header.tobytes() + words.tobytes())


def run(row: Row, history: Path, data: Path, log: Path) -> tuple[dict[str, int], str]:
    """Peaks of a run in bytes by reading, and what it said if it failed."""
    source = source_of(read_log(history, row))
    try:
        ast.parse(source)
    except SyntaxError as error:
        return {}, f"Python {sys.version_info.major}.{sys.version_info.minor} cannot read line {error.lineno}"
    with tempfile.TemporaryDirectory() as name:
        folder, report = Path(name), Path(name, "report.json")
        (folder / "train_gpt.py").write_text(source, encoding="utf-8")
        (folder / "data").mkdir()
        (folder / "data" / "fineweb10B").symlink_to(data)
        words = ["--gpu", "h100-sxm-80gb", "--gpus", "8", "--rank", "0", "--steps", str(row.steps), "--no-layers"]
        command = [sys.executable, "-c", "from dnnmem.cli.app import main; main()", "run", *words]
        command += ["--json", str(report), "--", "train_gpt.py"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **row.environment}
        with log.open("w") as said:
            try:
                subprocess.run(
                    command, cwd=folder, env=environment, stdout=said, stderr=said, check=False, timeout=LIMIT_SECONDS
                )
            except subprocess.TimeoutExpired:
                return {}, f"no end after {LIMIT_SECONDS} s"
        return peaks(json.loads(report.read_text())) if report.exists() else ({}, last_line(log))


def peaks(report: dict[str, Any]) -> tuple[dict[str, int], str]:
    """Peaks of the one rank in a report of `dnnmem run`, and what stopped it."""
    rank = report["ranks"][0]
    if rank["outcome"] != "ran":
        return {}, rank["message"].strip().splitlines()[-1][:300]
    memory = rank["memory"][0]
    return {name: memory[f"{name}_bytes"] for name in KEPT}, ""


def last_line(log: Path) -> str:
    """The last thing that a run said."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def judge(row: Row, found: dict[str, int], said: str, torch: str) -> Iterable[Result]:
    """Each logged reading of a row beside the one that ran; the logs cut MiB off."""
    for name, logged in (("allocated", row.allocated), ("reserved", row.reserved)):
        if logged is None:
            continue
        reproduced = found[name] // MIB if name in found else None
        error = None if reproduced is None else reproduced / logged - 1
        yield Result(
            row=row.name, reading=name, logged_mib=logged, reproduced_mib="" if reproduced is None else str(reproduced),
            relative_error="" if error is None else f"{error:+.5f}",
            kept=error is not None and abs(error) <= KEPT[name], torch=torch, said=said,
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
        return [
            Result(**{**line, "logged_mib": int(line["logged_mib"]), "kept": line["kept"] == "True"})
            for line in csv.DictReader(file)
        ]


def table(results: Iterable[Result]) -> str:
    """The saved results as Markdown, one line a reading."""
    rows = {row.name: row for row in load_rows()}
    lines = [
        "| run | torch there | torch here | reading | logged, MiB | reproduced | error |",
        f"|{7 * '---|'}",
    ]
    for result in results:
        error = f"{float(result.relative_error):+.2%}" if result.relative_error else result.said
        lines.append(
            f"| {result.row} | {rows[result.row].written_with} | {result.torch} | {result.reading} "
            f"| {result.logged_mib} | {result.reproduced_mib or '-'} | {error} |"
        )
    return "\n".join(lines)


def main() -> int:
    """1 if a row that ran is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("history", type=Path, nargs="?", help="a clone of modded-nanogpt, or its git directory")
    parser.add_argument("rows", nargs="*", help="names in rows.toml; all of the installed torch if none")
    parser.add_argument("--save", action="store_true", help=f"put the results into {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the saved results as Markdown")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()), help="where the runs' output goes")
    chosen = parser.parse_args()
    if chosen.table:
        print(table(load_results()))
        return 0
    if chosen.history is None:
        parser.error("name a clone of modded-nanogpt: git clone https://github.com/KellerJordan/modded-nanogpt")
    torch, kept = version("torch"), True
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        write_data(data)
        for row in load_rows():
            if (row.name not in chosen.rows) if chosen.rows else not torch.startswith(f"{row.torch}."):
                continue
            results = list(judge(row, *run(row, chosen.history, data, chosen.logs / f"{row.name}.log"), torch))
            for result in results:
                print(" ".join(f"{value!s:<14}" for value in dataclasses.astuple(result)), flush=True)
            kept = kept and all(result.kept for result in results)
            if chosen.save:
                save(results)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
