"""Published peaks of runs with an optimizer, offload, recomputation or adapters, against what a plan predicts.

    python benchmarks/published_peaks.py [FAMILY ...] [--save] [--table]

A row's plain step is recorded on the fake device and rewritten by its plan, and its allocations are played. The rows
are those of benchmarks/published/rows.toml, each with its source, and torchtitan's of `dnnmem validate`. Two families
record the model of their own library: put a checkout of Lit-GPT at 8641822, and of torchtune at 1814feb17 (with torch
2.6 and torchao 0.7), on PYTHONPATH. Rows of torchtitan before June 2025 are recorded with torch 2.7, others with a
later one. What cannot run here is left out; --save puts what ran among the results in tests/accuracy/data and writes
docs/accuracy.md, --table prints them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import re
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accuracy_page import put

from dnnmem.cli.commands.validate import published
from dnnmem.cli.validation_run import cases, estimated, traces
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.trace_file import load_trace
from dnnmem.estimator.validation.case import Case
from dnnmem.profilers.request import Request, parse_args
from dnnmem.profilers.run_many import run_many

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

FOLDER = Path(__file__).parent / "published"
RESULTS = Path(__file__).parents[1] / "tests" / "accuracy" / "data" / "published_peaks.csv"
TORCHTITAN = "torchtitan_llama_moe_curated"
UNITS = {"GB": 10**9, "GiB": 2**30}
MEDIAN = 0.03
"""What half of all rows are to be within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A published peak, and how its run is predicted."""

    family: str
    """Who published it."""
    name: str
    """Model and techniques."""
    unit: str
    """`GB` or `GiB`."""
    peak: float | None = None
    """As published; None = none."""
    out_of_memory: float | None = None
    """What the allocator could have had on the GPU that the run did not fit, in `unit`."""
    target: str = ""
    """What is recorded, in `FOLDER`."""
    needs: str = ""
    """Module that the target imports."""
    args: tuple[str, ...] = ()
    """Of the target."""
    batch: int = 1
    """Samples."""
    seq: int | None = None
    """Tokens."""
    gpu: str = ""
    """Whose kernels are recorded."""
    plan: tuple[str, ...] = ()
    """What the run did beyond the plain step."""
    left_out: str = ""
    """Why it is not predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A row and what is predicted of it."""

    family: str
    """Who published it."""
    row: str
    """Model and techniques."""
    metric: str
    """`allocated` or `reserved`."""
    unit: str
    """Of the two peaks."""
    published: str
    """Empty if the run was out of memory."""
    predicted: str
    """In the same unit."""
    error: str
    """Relative; empty without a published peak."""
    fits: str
    """Of a run that was out of memory, whether it is predicted to fit: `yes` or `no`; of others empty."""
    torch: str
    """Whose step was recorded."""


def load_rows() -> list[Row]:
    """All rows of the file, what a family's have in common filled in."""
    found = []
    for family in tomllib.loads((FOLDER / "rows.toml").read_text("utf-8"))["family"]:
        shared = {key: family[key] for key in ("unit", "target", "needs", "gpu", "batch", "seq") if key in family}
        for row in family["row"]:
            own = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
            own.pop("note", None)
            found.append(Row(**{**shared, **own, "family": family["name"]}))
    return found


def predict(rows: Sequence[Row]) -> Iterator[Result]:
    """What is predicted of rows whose targets can be imported; each step is recorded once."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if not row.left_out and find_spec(row.needs) is not None:
            groups.setdefault((row.target, row.args, row.batch, row.seq, row.gpu), []).append(row)
    for own in groups.values():
        trace = _record(own[0])
        for row in own:
            yield _predict(row, trace)


def _record(row: Row) -> Trace:
    request = Request(
        target=str(FOLDER / row.target), args=parse_args(row.args), batch_size=row.batch, seq_len=row.seq,
        device="fake", gpu=row.gpu,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as folder:
        [(_, answer)] = run_many([request], Path(folder))
        if isinstance(answer, DnnmemError):
            raise answer
        return load_trace(answer)[0]


def _predict(row: Row, trace: Trace) -> Result:
    cluster = find_cluster(f"{row.gpu}:1")
    [local] = rewrite(trace, change(Plan(), row.plan) if row.plan else Plan(), cluster)
    fits = ""
    if row.out_of_memory is not None:
        played = replay_trace(local, capacity_bytes=int(row.out_of_memory * UNITS[row.unit]))
        fits = "no" if played.out_of_memory else "yes"
    peak = replay_trace(local).peak_allocated_bytes / UNITS[row.unit]
    return _result(row, "allocated", peak, fits)


def _result(row: Row, metric: str, predicted: float, fits: str) -> Result:
    return Result(
        family=row.family, row=row.name, metric=metric, unit=row.unit,
        published="" if row.peak is None else f"{row.peak:.2f}", predicted=f"{predicted:.3f}",
        error="" if row.peak is None else f"{predicted / row.peak - 1:+.5f}", fits=fits, torch=version("torch"),
    )  # fmt: skip


def torchtitan(found: Iterable[Case]) -> Iterator[Result]:
    """Rows of torchtitan that ran a torch like the installed one, as `dnnmem validate` predicts them."""
    chosen = [c for c in found if _has_peak(c) and not c.reason and _is_early(c) == version("torch").startswith("2.7.")]
    steps = traces(chosen)
    for case in chosen:
        found = estimated(case, steps[case.key], memory=True)
        measured = case.measured_reserved_bytes
        fits = ("no" if found.fits is False else "yes") if measured is None else ""
        peak = None if measured is None else measured / 2**30
        row = Row(family="torchtitan", name=_titled(case), unit="GiB", peak=peak)
        yield _result(row, "reserved", (found.peak_reserved_bytes or 0) / 2**30, fits)


def _has_peak(case: Case) -> bool:
    return case.measured_reserved_bytes is not None or case.out_of_memory


def _is_early(case: Case) -> bool:
    """It ran a nightly before torch 2.8, whose RMSNorm is several ops and keeps a float32 copy of its input."""
    day = re.search(r"20\d\d-\d\d", case.row["version"].replace("2.7.0a0", "2025-03"))
    return day is not None and day[0] < "2025-06"


def _titled(case: Case) -> str:
    """`llama3.1-8B, 2 x 8192 tokens on 128 GPUs, selective op, compiled (line 3)`."""
    row, mesh, sharding = case.row, case.plan.mesh, case.plan.sharding
    parts = [
        f"{row['model']}, {case.batch} x {case.seq} tokens on {mesh.world_size} GPUs",
        f"cp {mesh.cp}" * (mesh.cp > 1),
        f"tp {mesh.tp}" * (mesh.tp > 1),
        f"{case.plan.remat.policy} recompute" if case.plan.remat.policy != "none" else "no recompute",
        "never resharded" * (not sharding.reshard_after_forward),
        "last block resharded" * (not sharding.keep_last),
        "compiled" * (case.plan.kernels.fusion != "none"),
    ]
    return ", ".join(part for part in parts if part) + f" (line {case.line})"


def save(results: Iterable[Result]) -> None:
    """Put `results` in place of what was known of the same rows."""
    known = {(result.family, result.row): result for result in (*load_results(), *results)}
    order = {(row.family, row.name): place for place, row in enumerate(load_rows())}
    ordered = sorted(known.values(), key=lambda r: (order.get((r.family, r.row), len(order)),))
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(result) for result in ordered)
    put("published peaks", table(load_results()))


def load_results() -> list[Result]:
    """What was saved; nothing where nothing was."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [Result(**line) for line in csv.DictReader(file)]


def errors_of(results: Iterable[Result]) -> list[float]:
    """Their relative errors, without sign."""
    return [abs(float(result.error)) for result in results if result.error]


def table(results: Sequence[Result]) -> str:
    """By family, then every row, and what is left out."""
    lines = ["| family | rows | median error | worst |", "|---|---|---|---|"]
    families = dict.fromkeys(result.family for result in results)
    lines += [_score(family, errors_of(r for r in results if r.family == family)) for family in families]
    lines += [_score("all", errors_of(results)), ""]
    lines += ["| family | run | published | predicted | error |", "|---|---|---|---|---|"]
    for r in results:
        told = f"{r.published} {r.unit}" if r.published else "out of memory"
        error = f"{float(r.error):+.1%}" if r.error else {"no": "so it is", "yes": "it would fit"}[r.fits]
        lines.append(f"| {r.family} | {r.row} | {told} | {float(r.predicted):.2f} | {error} |")
    lines += ["", "| family | left out | because |", "|---|---|---|"]
    lines += [f"| {row.family} | {row.name} | {row.left_out} |" for row in load_rows() if row.left_out]
    return "\n".join([*lines, *_left_out(cases(published()))])


def _score(name: str, errors: Sequence[float]) -> str:
    return f"| {name} | {len(errors)} | {statistics.median(errors):.2%} | {max(errors):.1%} |"


def _left_out(found: Iterable[Case]) -> Iterator[str]:
    why = Counter(
        case.reason for case in found if case.source == TORCHTITAN and case.row.get("peak_reserved_GiB") and case.reason
    )
    yield from (f"| torchtitan | {count} rows | {reason} |" for reason, count in why.items())


def main() -> int:
    """Print what ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--save", action="store_true", help=f"put the results into {RESULTS.name}")
    parser.add_argument("--table", action="store_true", help="print the saved results as Markdown")
    asked = parser.parse_args()
    if asked.table:
        print(table(load_results()))
        return 0
    rows = [row for row in load_rows() if not asked.families or row.family in asked.families]
    results = []
    for result in predict(rows):
        results.append(result)
        print(*dataclasses.astuple(result), sep=" | ", flush=True)
    if not asked.families or "torchtitan" in asked.families:
        own = list(torchtitan(case for case in cases(published()) if case.source == TORCHTITAN))
        print(*(" | ".join(dataclasses.astuple(result)) for result in own), sep="\n")
        results += own
    if asked.save:
        save(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
