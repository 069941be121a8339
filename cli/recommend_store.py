"""What `dnnmem recommend` leaves for `explain`: its report and the traces that it was made of, in the project's folder.

.dnnmem/recommend/report.json      dnnmem.recommend/1, and how to price the same step again
step-8.trace.json.gz   ...
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnmem.estimator.errors import UsageError

if TYPE_CHECKING:
    from dnnmem.cli.recommend_run import Asked
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.recorded import Recorded
    from dnnmem.estimator.report import Report
    from dnnmem.estimator.trace import Trace

FOLDER = Path(".dnnmem") / "recommend"
"""In the project."""
REPORT = "report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a recommendation left behind."""

    report: dict[str, Any]
    """As `dnnmem recommend --json` has it."""
    traces: dict[int, Path]
    """Saved steps by micro-batch."""
    in_types: dict[str, dict[int, Path]]
    """The same by `Precision.compute`, where they were recorded in it."""
    layers: int | None
    """Blocks of the model, where the traces have few."""
    rates: Path | None
    """Rates that were used, None = the packaged ones."""

    def plan(self, rank: int) -> Plan:
        """The plan of a rank, 0 being the baseline. Raises `UsageError` if there is none."""
        from dnnmem.estimator.plan_text import from_json

        return from_json(self.row(rank)["plan"], f"rank {rank}")

    def row(self, rank: int) -> dict[str, Any]:
        """All that the report has of a rank. Raises `UsageError` if there is none."""
        rows = [self.report.get("baseline"), *self.report["candidates"]]
        found: dict[str, Any] | None = next((row for row in rows if row and row["rank"] == rank), None)
        if found is None:
            ranks = ", ".join(str(row["rank"]) for row in rows if row)
            raise UsageError(f"the last recommendation has no rank {rank}; it has {ranks}")
        return found

    def trace(self, micro_batch: int | None, compute: str | None) -> Trace:
        """The recorded step of a micro-batch, in a plan's own types if there is one.

        Raises `UsageError` if it was not recorded.
        """
        from dnnmem.estimator.trace_file import load_trace

        wanted = micro_batch or max(self.traces)
        if wanted not in self.traces:
            sizes = ", ".join(map(str, sorted(self.traces)))
            raise UsageError(
                f"batch.micro_batch is {wanted}, but the step was recorded at {sizes}",
                hint=f"dnnmem recommend {self.report['target']} --batch {wanted} ...",
            )
        return load_trace(self.in_types.get(compute or "", self.traces)[wanted])[0]


def keep(project: Path, report: Report, recorded: Recorded, asked: Asked) -> Path | None:
    """Write report and traces to the project's folder; None if it cannot be written."""
    from dnnmem.cli.export.files import write_atomic
    from dnnmem.cli.export.recommend_json import to_data
    from dnnmem.estimator.profile import Measurement
    from dnnmem.estimator.trace_file import save_trace

    folder = project / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names: dict[str, dict[str, str]] = {}
        for compute, traces in {"": recorded.traces, **recorded.in_types}.items():
            names[compute] = {}
            for micro, trace in traces.items():
                name = f"step-{micro}{compute and '-'}{compute}.trace.json.gz"
                save_trace(trace, Measurement(), folder / name)
                names[compute][str(micro)] = name
        again = {
            "layers": recorded.layers, "traces": names.pop(""), "in_types": names,
            "rates": asked.rates and str(asked.rates.absolute()),
        }  # fmt: skip
        write_atomic(folder / REPORT, json.dumps({**to_data(report), "again": again}, indent=1) + "\n")
    except (OSError, UsageError):
        return None
    return folder


def load(path: Path | None, project: Path) -> Kept:
    """What was kept in the project, or in a folder. Raises `UsageError` if there is nothing to read."""
    folder = path or project / FOLDER
    file = folder / REPORT if folder.is_dir() else folder
    try:
        data = json.loads(file.read_text("utf-8"))
        again = data["again"]
        return Kept(
            report=data,
            traces=_paths(file.parent, again["traces"]),
            in_types={compute: _paths(file.parent, some) for compute, some in again.get("in_types", {}).items()},
            layers=again["layers"],
            rates=again["rates"] and Path(again["rates"]),
        )
    except OSError:
        raise UsageError(
            f"{file} is not there: there is no recommendation to explain",
            hint="dnnmem recommend TARGET --gpus 8 makes one",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is no kept recommendation: {error!r}", hint="make it again") from None


def _paths(folder: Path, names: dict[str, str]) -> dict[int, Path]:
    return {int(micro): folder / name for micro, name in names.items()}
