"""Do planners keep their budgets, and at what price? Ten budgets of two models, predicted and run on a virtual GPU.

    python benchmarks/planner_budgets.py [MODEL ...] [--planner NAME] [--budgets 10] [--save]

Budgets lie evenly between the least that any plan keeps and what the plain step reserves. --save writes the rows to
tests/accuracy/data and the tables to docs/accuracy.md; --table writes the tables alone, from the rows that were saved.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from accuracy_page import put

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.errors import DnnmemError, InfeasibleError
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import settings
from dnnmem.estimator.planners.problem import Problem, problem_of
from dnnmem.estimator.planners.solve import Solution, planners, solve_problem
from dnnmem.estimator.repeat import repeat
from dnnmem.profilers.record_sizes import record_batches
from dnnmem.profilers.request import Request

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "accuracy" / "data" / "planner_budgets.csv"
PLACE = "planner budgets"
GPU = "h100-sxm-80gb"
MIB = 2**20
MEDIUM = {"layers": "24", "width": "1024", "heads": "16"}
MODELS = {
    "GPT-2 medium": Request(target=str(ROOT / "sample_models" / "gpt.py"), batch_size=8, seq_len=1024, args=MEDIUM),
    "ResNet-152": Request(target="torchvision:resnet152", batch_size=64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One planner's answer to one budget, in bytes and seconds."""

    model: str
    budget_bytes: int
    planner: str
    outcome: str
    """`fits`, `does not fit` or `does not apply`."""
    peak_bytes: int = 0
    """Reserved, predicted."""
    ran_bytes: int = 0
    """Reserved on the virtual GPU; 0 = the schedule is predicted only, or it did not run."""
    plain_seconds: float = 0.0
    extra_seconds: float = 0.0
    solve_seconds: float = 0.0
    plan: str = ""

    @property
    def over(self) -> float:
        """What ran over the budget, less 1."""
        return self.ran_bytes / self.budget_bytes - 1


def problem(request: Request, time_limit: float) -> Problem:
    """The target's step, recorded without a GPU, and no budget yet."""
    asked = replace(request, device="fake", gpu=GPU)
    recorded = record_batches(asked, (request.batch_size or 1,), cache=cache_folder(os.environ))
    [trace] = recorded.traces.values()
    whole = trace if recorded.layers is None else repeat(trace, recorded.layers)
    return problem_of(whole, 1, cluster=find_cluster(GPU), time_limit_seconds=time_limit)


def budgets(asked: Problem, count: int, names: Sequence[str]) -> list[int]:
    """From the least that a planner keeps to the plain step's."""
    least = most = asked.plain().peak_bytes
    for name in (name for name in names if planners()[name].applied):
        with suppress(DnnmemError):
            least = min(least, _least(asked, name))
    return [least + (most - least) * k // (count - 1) for k in range(count)]


def _least(asked: Problem, name: str) -> int:
    try:
        return solve_problem(replace(asked, budget_bytes=1), name).cost.peak_bytes
    except InfeasibleError as error:
        return error.needed_bytes


def answers(
    model: str, asked: Problem, sizes: Sequence[int], names: Sequence[str]
) -> Iterator[tuple[Row, Plan | None]]:
    """What each planner says to each budget."""
    for name in names:
        for budget in sizes:
            row = Row(model=model, budget_bytes=budget, planner=name, outcome="fits")
            try:
                found = solve_problem(replace(asked, budget_bytes=budget), name)
            except InfeasibleError:
                yield replace(row, outcome="does not fit"), None
                continue
            except DnnmemError as error:
                why = error.message.splitlines()[0].replace(f"{ROOT}/", "")
                yield replace(row, outcome="does not apply", plan=why), None
                break
            yield _priced(row, found), found.plan


def _priced(row: Row, found: Solution) -> Row:
    words = " ".join(settings(found.plan)) if found.plan else ""
    return replace(
        row, peak_bytes=found.cost.peak_bytes, plain_seconds=found.plain.seconds, extra_seconds=found.extra_seconds,
        solve_seconds=found.solve_seconds, plan=words,
    )  # fmt: skip


def executed(request: Request, found: Sequence[tuple[Row, Plan | None]]) -> list[Row]:
    """The rows with what their plans needed on the virtual GPU, each plan run once."""
    sys.path.insert(0, str(ROOT))
    from tests.laws.run_plans import run_plans

    plans = list(dict.fromkeys(plan for _, plan in found if plan is not None))
    ran = dict(zip(plans, run_plans(request, plans, GPU), strict=True))
    rows = []
    for row, plan in found:
        peak = ran[plan] if plan is not None else 0
        if isinstance(peak, str):
            print(f"{row.model}: {row.planner}, {row.plan}: {peak}", file=sys.stderr)
            peak = 0
        rows.append(replace(row, ran_bytes=peak))
    return rows


def load_results() -> list[Row]:
    """What was saved."""
    kinds = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(Row)}
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [Row(**{name: kinds[name](text) for name, text in line.items()}) for line in csv.DictReader(file)]


def save(rows: Iterable[Row]) -> None:
    """Put `rows` in the place of older ones of the same models."""
    new = list(rows)
    models = {row.model for row in new}
    old = [row for row in load_results() if row.model not in models] if RESULTS.exists() else []
    order = {name: number for number, name in enumerate(MODELS)}
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, sorted([*old, *new], key=lambda row: order.get(row.model, len(order)))))


def table(rows: Sequence[Row]) -> str:
    """Extra time at each budget, and how the budgets were kept, as Markdown."""
    lines: list[str] = []
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        sizes = sorted({row.budget_bytes for row in mine})
        plain = next(row.plain_seconds for row in mine if row.plain_seconds)
        lines += [
            f"{model}: a plain step takes {1000 * plain:.0f} ms and reserves {sizes[-1] / MIB:,.0f} MiB.", "",
            f"| budget, MiB | {' | '.join(f'{size / MIB:,.0f}' for size in sizes)} | run over budget | off |",
            f"|{'---|' * (len(sizes) + 3)}",
        ]  # fmt: skip
        for name in dict.fromkeys(row.planner for row in mine):
            by_size = {row.budget_bytes: row for row in mine if row.planner == name}
            if all(row.outcome == "does not apply" for row in by_size.values()):
                continue
            cells = [_cell(by_size.get(size)) for size in sizes]
            lines.append(f"| {name} | {' | '.join(cells)} | {' | '.join(_kept(list(by_size.values())))} |")
        lines.append("")
    return "\n".join(lines).strip()


def _cell(row: Row | None) -> str:
    return "-" if row is None or row.outcome != "fits" else f"{100 * row.extra_seconds / row.plain_seconds:.1f}"


def _kept(rows: Sequence[Row]) -> tuple[str, str]:
    """How many runs needed more than their budget, and the worst prediction."""
    ran = [row for row in rows if row.ran_bytes]
    if not ran:
        return "predicted only", ""
    off = max((row.ran_bytes / row.peak_bytes - 1 for row in ran), key=abs)
    return f"{sum(row.over > 0 for row in ran)} of {len(ran)}", f"{off:+.2%}"


def main() -> int:
    """1 if a run needed more than its budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--planner", action="append", metavar="NAME")
    parser.add_argument("--budgets", type=int, default=10)
    parser.add_argument("--time-limit", type=float, default=20.0)
    parser.add_argument("--no-run", action="store_true", help="predict only")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    rows: list[Row] = []
    for model in () if chosen.table else chosen.models:
        names = chosen.planner or list(planners())
        asked = problem(MODELS[model], chosen.time_limit)
        found = list(answers(model, asked, budgets(asked, chosen.budgets, names), names))
        rows += [row for row, _ in found] if chosen.no_run else executed(MODELS[model], found)
        if chosen.save:
            save(rows)
    rows = load_results() if chosen.table else rows
    print(table(rows))
    if chosen.save or chosen.table:
        put(PLACE, table(load_results()))
    return int(any(row.over > 0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
