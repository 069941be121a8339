"""Do programs as people write them run on the virtual GPU, unmodified? One run of `dnnmem run` for each.

    pip install -r benchmarks/programs/requirements.txt
    python benchmarks/programs.py [PROGRAM ...] --sources /tmp/sources

programs/catalogue.toml names them: scripts in programs/scripts, which know nothing of dnnmem, and the training scripts
of public repositories at a commit. Those are read from clones under --sources, named as their repository is; a program
whose clone or libraries are missing is left out, and said so. Data are random (programs/data.py) and models start from
configurations, so nothing is fetched. --twice runs each again and compares peaks; --save puts what ran among the
results in tests/accuracy/data; --table prints those as Markdown.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent / "programs"
CATALOGUE = HERE / "catalogue.toml"
RESULTS = Path(__file__).parents[1] / "tests" / "accuracy" / "data" / "programs.csv"
LIMIT_SECONDS = 900
TO_ITS_END = 100
GIB = 2**30
_COUNTS = re.compile(r" \(\d+ times?\)$|(?<=^compiled by torch.compile): .*")
"""What of an assumption is of one program alone."""
_NOT_OF_PEAKS = (
    "layers are not shown",
    "the CUDA context on ",
    "NCCL's buffers are ",
    "deepspeed starts ",
    "accelerate launch starts ",
)
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}
"""What a machine without network needs so that libraries do not wait for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program and how it is started."""

    name: str
    """Name of its table in catalogue.toml."""
    about: str
    """What it trains, and with what."""
    script: str
    """Its file: in programs/scripts, or in the repository."""
    launcher: tuple[str, ...] = ()
    """What starts it: `torchrun --nproc-per-node 2`; `{here}` is programs/scripts, here and in `arguments`."""
    arguments: tuple[str, ...] = ()
    """What it is told."""
    gpu: str = "h100-sxm-80gb"
    """The GPU, by its name in dnnmem's tables."""
    gpus: int = 1
    """Ranks of the job."""
    ranks: str = ""
    """`--rank`; empty = as `dnnmem run` does by itself."""
    steps: int = 3
    """Training steps; `TO_ITS_END` for a program that makes fewer, and evaluates and saves after them."""
    needs: tuple[str, ...] = ()
    """Packages that must be installed, as pip names them."""
    repository: str = ""
    """`owner/name` on GitHub, for a public script."""
    commit: str = ""
    """Of the repository."""
    paths: tuple[str, ...] = ()
    """What is taken of the repository; all if empty."""
    data: str = ""
    """Random data it wants in files, by a name in programs/data.py."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables it is started with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one program."""

    program: str
    outcome: str
    """`ran`, `out_of_memory`, `failed`, `timed_out`, or `refused` where dnnmem stopped it with a message."""
    gpu: str
    gpus: int
    ranks: int
    """Processes that were run."""
    steps: int
    allocated_bytes: int
    """Peak of the rank that reserved most; 0 if nothing is known."""
    reserved_bytes: int
    again_bytes: str
    """Difference of peak allocated and reserved in a second run, as `0+0`; empty without one."""
    layers: int
    """Modules in the table of layers; 0 = none was recorded."""
    seconds: float
    """Wall time of the first run on two cores, the recorded second one included; says nothing of the GPU."""
    versions: str
    """torch and the program's packages."""
    notes: str
    """What was assumed, or what stopped it; a line each."""


def load_programs() -> list[Program]:
    """All of catalogue.toml."""
    tables = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    lists = ("launcher", "arguments", "needs", "paths")
    return [
        Program(name=name, **{key: tuple(value) if key in lists else value for key, value in table.items()})
        for name, table in tables.items()
    ]


def missing(program: Program, sources: Path | None) -> str:
    """Why it cannot be tried here; empty if it can."""
    here = {distribution.metadata["Name"].lower() for distribution in distributions()}
    absent = [package for package in program.needs if package.lower() not in here]
    if absent:
        return f"{', '.join(absent)} is not installed"
    if program.repository and history(program, sources) is None:
        return f"no clone of {program.repository} under --sources"
    return ""


def history(program: Program, sources: Path | None) -> Path | None:
    """The git directory of its repository; None where there is no clone."""
    clone = sources / program.repository.rpartition("/")[2] if sources else None
    places = (clone, clone / ".git") if clone else ()
    return next((place for place in places if (place / "HEAD").exists()), None)


def prepare(program: Program, sources: Path | None, folder: Path) -> str:
    """Put source and data into `folder`; returns the script's path as a user there would type it."""
    if program.data:
        subprocess.run([sys.executable, HERE / "data.py", program.data, folder], check=True)
    git = history(program, sources)
    if git is None:
        return str(HERE / "scripts" / program.script)
    command = ["git", f"--git-dir={git}", f"--work-tree={folder}", "checkout", "-q", program.commit, "--"]
    index = {"GIT_INDEX_FILE": str(folder.parent / "index")}  # the clone stays as it is
    subprocess.run([*command, *(program.paths or ".")], cwd=folder, env={**os.environ, **index}, check=True)
    return program.script


def run(program: Program, sources: Path | None, log: Path, *, layers: bool = True, twice: bool = False) -> Result:
    """Run it by `dnnmem run`; what that prints goes to `log`."""
    start = time.monotonic()
    found = run_once(program, sources, log, *([] if layers else ["--no-layers"]))
    seconds = time.monotonic() - start
    again = run_once(program, sources, log.with_suffix(".again.log"), "--no-layers") if twice else {}
    allocated, reserved = peaks(found)
    ranks = found.get("ranks", [])
    return Result(
        program=program.name,
        outcome=next((r["outcome"] for r in ranks if r["outcome"] != "ran"), "ran" if ranks else "refused"),
        gpu=program.gpu,
        gpus=program.gpus,
        ranks=len(ranks),
        steps=min((r["steps"] for r in ranks), default=0),
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        again_bytes="{}+{}".format(*(b - a for a, b in zip(peaks(found), peaks(again), strict=True))) if twice else "",
        layers=len((found.get("profile") or {}).get("layers", [])),
        seconds=round(seconds, 1),
        versions=", ".join(f"{package} {version(package)}" for package in ("torch", *program.needs)),
        notes="\n".join(notes(found, log)),
    )


def run_once(program: Program, sources: Path | None, log: Path, *options: str) -> dict[str, Any]:
    """The JSON of one `dnnmem run`; empty if it wrote none."""
    with tempfile.TemporaryDirectory() as name:
        folder, report = Path(name, "program"), Path(name, "run.json")
        folder.mkdir()
        script = prepare(program, sources, folder)
        words = ["--gpu", program.gpu, "--steps", str(program.steps), "--timeout", str(LIMIT_SECONDS), *options]
        words += ["--gpus", str(program.gpus)] if program.gpus > 1 else []
        words += ["--rank", program.ranks] if program.ranks else []
        command = [sys.executable, "-m", "dnnmem", "run", *words, "--json", str(report), "--"]
        environment = {**os.environ, **_OFFLINE, **program.environment}
        with log.open("w") as said:
            here = str(HERE / "scripts")
            command += [word.replace("{here}", here) for word in (*program.launcher, script, *program.arguments)]
            subprocess.run(command, cwd=folder, env=environment, stdout=said, stderr=said, check=False)
        found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
        return found


def peaks(found: Mapping[str, Any]) -> tuple[int, int]:
    """Peak allocated and reserved of the GPU that reserved most, in bytes."""
    gpus = [gpu for rank in found.get("ranks", []) for gpu in rank["memory"]]
    most = max(gpus, key=lambda gpu: gpu["reserved_bytes"], default={})
    return most.get("allocated_bytes", 0), most.get("reserved_bytes", 0)


def notes(found: Mapping[str, Any], log: Path) -> list[str]:
    """What a run assumed; or the last line of what stopped it."""
    ranks = found.get("ranks", [])
    said = [rank["message"].splitlines()[-1] for rank in ranks if rank["message"]]
    if not ranks:
        lines = log.read_text(errors="replace").splitlines()
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")][-1:]
    told = dict.fromkeys([*said, *(note for rank in ranks for note in rank["notes"])])
    return [note.replace(f"{HERE / 'scripts'}{os.sep}", "") for note in told]


def save(results: list[Result]) -> None:
    """Put `results` in place of what was known of the same programs, in the order of the catalogue."""
    named = {result.program for result in results}
    order = {program.name: place for place, program in enumerate(load_programs())}
    known = [result for result in load_results() if result.program not in named and result.program in order]
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Result)], lineterminator="\n")
        writer.writeheader()
        merged = sorted([*known, *results], key=lambda result: order[result.program])
        writer.writerows(dataclasses.asdict(result) for result in merged)


def load_results() -> list[Result]:
    """What was saved; nothing where nothing was."""
    if not RESULTS.exists():
        return []
    kinds = {"int": int, "float": float, "str": str}
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [
            Result(**{f.name: kinds[str(f.type)](line[f.name]) for f in dataclasses.fields(Result)})
            for line in csv.DictReader(file)
        ]


def table(results: Iterable[Result]) -> str:
    """The saved results as Markdown, one line a program, and below what was assumed of which."""
    programs = {program.name: program for program in load_programs()}
    found = list(results)
    ran = sum(result.outcome == "ran" for result in found)
    several = sum(result.outcome == "ran" and result.gpus > 1 for result in found)
    lines = [f"{ran} of {len(found)} programs ran, {several} of them on several GPUs.", ""]
    lines += ["| program | GPU | outcome | allocated, GiB | reserved, GiB | assumed |", "|---|---|---|---|---|---|"]
    numbers: dict[str, int] = {}
    for result in found:
        program = programs[result.program]
        gpus = f"{result.gpus} x {result.gpu}" if result.gpus > 1 else result.gpu
        sizes = " | ".join(f"{n / GIB:.3f}" if n else "-" for n in (result.allocated_bytes, result.reserved_bytes))
        sentences = [_COUNTS.sub("", note) for note in result.notes.splitlines() if not note.startswith(_NOT_OF_PEAKS)]
        outcome = result.outcome.replace("_", " ")
        if result.outcome not in {"ran", "out_of_memory"}:
            outcome = f"{outcome}: {sentences[0]}"
        told = sentences if result.outcome == "ran" else sentences[1:]
        marks = ", ".join(str(numbers.setdefault(sentence, len(numbers) + 1)) for sentence in dict.fromkeys(told))
        lines.append(f"| {program.about} | {gpus} | {outcome} | {sizes} | {marks or '-'} |")
    return "\n".join([*lines, "", *(f"{number}. {sentence}" for sentence, number in numbers.items())])


def main() -> int:
    """1 if a program that was tried did not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", help="names in catalogue.toml; all if none")
    parser.add_argument("--sources", type=Path, help="folder with clones of the public repositories")
    parser.add_argument("--no-layers", dest="layers", action="store_false", help="no second run that records a step")
    parser.add_argument("--twice", action="store_true", help="run each again, and compare the peaks")
    parser.add_argument("--save", action="store_true", help=f"put the results into {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the saved results as Markdown")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()), help="where reports go")
    chosen = parser.parse_args()
    if chosen.table:
        print(table(load_results()))
        return 0
    ran = True
    for program in load_programs():
        if chosen.programs and program.name not in chosen.programs:
            continue
        reason = missing(program, chosen.sources)
        if reason:
            print(f"{program.name:<26} left out: {reason}", flush=True)
            continue
        result = run(
            program, chosen.sources, chosen.logs / f"{program.name}.log", layers=chosen.layers, twice=chosen.twice
        )
        sizes = f"{result.allocated_bytes / GIB:8.3f} {result.reserved_bytes / GIB:8.3f} GiB"
        said = f"{result.layers:4} layers {result.again_bytes:>6} {result.seconds:6.1f} s"
        print(
            f"{program.name:<26} {result.outcome:<13} {sizes} {said}",
            *result.notes.splitlines(),
            sep="\n    ",
            flush=True,
        )
        ran = ran and result.outcome == "ran"
        if chosen.save:
            save([result])
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
