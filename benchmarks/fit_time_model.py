"""Fit the shares and costs of `specs/time_model.toml` on one half of the published rows; print how both halves fare.

    python benchmarks/fit_time_model.py TABLES [--write] [--sites] [--rows N] [--most N]

TABLES is a folder of the tables that `dnnmem validate` reads. Rows that are near twins (same source, model, sequence,
micro-batch and tensor parallelism) are in the same half, chosen by a hash. What is fitted are logarithms of parameters
with priors, `time_model_priors.toml`, so that what the rows do not determine stays where books have it. A
source's host, loop and attention kernels are constants of its site, fitted on the same half; `--sites` fits them alone.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnnmem.cli.validation_run import traces as record
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.estimate import price
from dnnmem.estimator.local_step import LocalStep, local_step
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.time_model import TimeModel, at_site, load, read_parameters
from dnnmem.estimator.validation.case import Case
from dnnmem.estimator.validation.sources import cases as read_cases

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Floats = npt.NDArray[np.float64]

SOURCES = (
    "vtrain_single", "vtrain_multi", "megatron_selective_recompute_2022", "llmfoundry_mpt_throughput",
    "torchtitan_llama_moe_curated",
)  # fmt: skip
SHARED = {
    "stream": 0.02, "eager": 0.02, "norm": 0.02, "norm_backward": 0.02, "softmax": 0.02,
    "reduction": 0.02, "index_seconds": 0.02, "launch_seconds": 0.3, "host_seconds": 0.3,
    "nvlink": 0.03, "nvlink_latency_seconds": 0.1, "network": 0.15, "network_latency_seconds": 0.4,
    "cudnn_attention": 0.15, "contention": 0.5,
}  # fmt: skip
"""Fitted for all architectures, with the sd of the log prior; kernels that move memory are known from Liger's."""
BY_ARCH = {"gemm": 0.1, "attention_forward": 0.2, "attention_backward": 0.2}
"""Fitted for each architecture."""
BY_DEVICE = ("stream", "eager")
"""Shares that a GPU's own `efficiency` holds, so that an architecture's table must."""
ARCHES = ("ampere", "hopper")
BY_SITE = {"host_seconds": 0.7, "iteration_seconds": 1.0, "attention": 0.3, "host_backward": 0.7, "network": 0.3}
"""Fitted for each source."""
ONLY = {"attention": "llmfoundry_mpt_throughput", "host_backward": "vtrain_single", "network": "vtrain_multi"}
"""Of them, those of one source: Triton's attention with ALiBi of 2023; a table that
its host bounds nearly everywhere; nodes whose network is known by a simulator's configuration only."""
SAME = 1.1
"""A site's parameter this near the default is not written."""
NOISE = 0.06
"""Sd of log(measured / predicted) of a good model: what equal published runs differ by."""
_UNITS = {
    "launch_seconds": ("launch_us", 1e6), "host_seconds": ("host_us", 1e6), "index_seconds": ("index_ns", 1e9),
    "iteration_seconds": ("iteration_ms", 1e3), "cudnn_attention": ("cudnn_attention", 1.0),
    "contention": ("contention", 1.0),
    "nvlink_latency_seconds": ("nvlink_latency_us", 1e6), "network_latency_seconds": ("network_latency_us", 1e6),
    "attention": ("attention", 1.0),
}  # fmt: skip
"""Keys of parameters that are no shares, with the factor to their unit."""
PRIORS = Path(__file__).with_name("time_model_priors.toml")
FILE = Path(__file__).parents[1] / "estimator" / "specs" / "time_model.toml"
ROUNDS = 6
SLOPES_AT = (0, 3)
"""Rounds that find the slopes anew: they change little from round to round."""
LARGE = 0.04
"""Errors above it weigh by their size, not by its square: what is judged is the mean error, and some rows are odd."""
TINY = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measured row, prepared."""

    case: Case
    step: LocalStep
    arch: str
    seconds: float
    is_test: bool


Name = tuple[str, str]
"""Scope (`""`, an architecture or `site:` and a source) and parameter."""


def main() -> None:
    """Read, record, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--sites", action="store_true", help="leave shared parameters as they are packaged")
    parser.add_argument("--rows", type=int, default=50, help="most training rows of a source")
    parser.add_argument("--most", type=int, default=10**6, help="most rows of a source, both halves")
    parser.add_argument("--sources", default=",".join(SOURCES))
    options = parser.parse_args()
    rows = prepare(options.folder, options.sources.split(","), options.most)
    train = thin([row for row in rows if not row.is_test], options.rows)
    names = [name for name in parameters(rows) if name[0].startswith("site:") or not options.sites]
    values = fit(train, names)
    for name in names:
        print(f"{name[0]:24s} {name[1]:26s} {start(name):.4g} -> {values[name]:.4g}")
    report("train", [r for r in rows if not r.is_test], values)
    report("test", [r for r in rows if r.is_test], values)
    if options.write:
        write(values)


def prepare(folder: Path, sources: Sequence[str], most: int) -> list[Row]:
    """Every row that can be predicted, its passes done."""
    cases = []
    for name in sources:
        own = [case for case in read_cases([folder / f"{name}.csv"]) if case.measured_seconds and not case.reason]
        cases += own[:: max(1, math.ceil(len(own) / most))]
    recorded = record(cases, lambda *words: print(*words, file=sys.stderr))
    rows: list[Row] = []
    for number, case in enumerate(cases):
        try:
            cluster = find_cluster(case.cluster)
            trace = recorded[case.key]
            step = local_step(trace, case.plan, cluster, case.layers)
        except (DnnmemError, KeyError) as error:
            print(f"{case.source}:{case.line}: {error}", file=sys.stderr)
            continue
        rows.append(
            Row(
                case=case,
                step=step,
                arch=cluster.device.arch,
                seconds=case.measured_seconds or 0.0,
                is_test=test_half(case),
            )
        )
        if number % 50 == 0:
            print(f"{number} of {len(cases)} prepared", file=sys.stderr)
    return rows


def test_half(case: Case) -> bool:
    """Near twins share a half, and a half stays as it was drawn: vTrain's vocabulary was thought to be padded then."""
    twins = repr((case.source, case.key, case.plan.mesh.tp))
    twins = twins.replace("vocab=50257", "vocab=51200").replace("vocab=50256", "vocab=51200")
    return hashlib.md5(twins.encode()).digest()[0] % 2 == 1  # noqa: S324


def thin(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many rows of each source, evenly."""
    kept: list[Row] = []
    for source in dict.fromkeys(row.case.source for row in rows):
        own = [row for row in rows if row.case.source == source]
        kept += own[:: max(1, math.ceil(len(own) / most))]
    return kept


def parameters(rows: Iterable[Row]) -> list[Name]:
    """What is fitted."""
    rows = list(rows)
    arches = sorted({row.arch for row in rows} & set(ARCHES))
    sites = sorted({row.case.source for row in rows})
    return (
        [("", name) for name in SHARED]
        + [(arch, name) for arch in arches for name in BY_ARCH]
        + [
            (f"site:{site}", name)
            for site in sites
            for name in BY_SITE
            if ONLY.get(name, site) == site and name not in of_site(site)
        ]
    )


def start(name: Name) -> float:
    """Where a parameter starts: at its prior, a site's own where it has one."""
    scope, field = name
    own = of_site(scope.removeprefix("site:"), "start")
    if field == "attention" or field in own:
        return own.get(field, 1.0)
    table = "default" if scope == "" or scope.startswith("site:") else scope
    return read_parameters(priors()[table])[field]


@cache
def priors() -> dict[str, Any]:
    """The file of priors; `site` holds what is known of a site and not fitted, `start` where its own begin."""
    return tomllib.loads(PRIORS.read_text("utf-8"))


def of_site(source: str, kind: str = "site") -> dict[str, float]:
    """What the priors' tables of a `kind` say of the site of `source`."""
    return read_parameters(priors()[kind].get(source, {}))


def model_of(row: Row, values: dict[Name, float]) -> TimeModel:
    """The parameters of a row."""
    scopes = ("", row.arch, f"site:{row.case.source}")
    shared, arch, site = ({n: v for (where, n), v in values.items() if where == scope} for scope in scopes)
    own = {**of_site(row.case.source), **site, **row.case.rates}
    return at_site(replace(load(row.step.cluster.device), **{**shared, **arch}), own)


def log_seconds(row: Row, values: dict[Name, float]) -> float:
    """Log of the predicted seconds."""
    return math.log(time_step(row.step, model_of(row, values)).seconds)


def fit(rows: Sequence[Row], names: Sequence[Name], kept: dict[int, Floats] | None = None) -> dict[Name, float]:
    """Maximum a posteriori by Gauss-Newton on log parameters; each source has the same weight.

    `kept` takes the slopes of each row, by its `id`; where it has those of all rows, none are found anew.
    """
    counts = {s: sum(row.case.source == s for row in rows) for s in {row.case.source for row in rows}}
    weight = np.array([math.sqrt(len(rows) / (len(counts) * counts[row.case.source])) for row in rows]) / NOISE
    spreads = np.array(
        [{**SHARED, **BY_ARCH}.get(n[1], 0) if not n[0].startswith("site") else BY_SITE[n[1]] for n in names]
    )
    prior = np.log([start(name) for name in names])
    unsure = [bool(name[0]) and name[1] == "host_seconds" and start(name) == start(("", name[1])) for name in names]
    x = prior + math.log(3) * np.array(unsure)  # where it binds
    measured = np.log([row.seconds for row in rows])
    kept = {} if kept is None else kept
    known = all(id(row) in kept for row in rows)
    for turn in range(ROUNDS):
        values = dict(zip(names, np.exp(x).tolist(), strict=True))
        predicted = np.array([log_seconds(row, values) for row in rows])
        if turn in SLOPES_AT and not known:
            kept.update(zip(map(id, rows), slopes_of(rows, names, values, predicted), strict=True))
        slopes = np.array([kept[id(row)] for row in rows])
        residual = measured - predicted
        robust = weight * np.sqrt(huber(residual / LARGE))
        a = np.vstack([slopes * robust[:, None], np.diag(1 / spreads)])
        b = np.concatenate([residual * robust, (prior - x) / spreads])
        x = x + np.clip(np.linalg.lstsq(a, b, rcond=None)[0], -0.5, 0.5)
        print(
            f"round {turn}: mean abs error {np.mean(np.abs(np.expm1(-residual))):.4f} {time.process_time():.0f} s",
            file=sys.stderr,
        )
    return dict(zip(names, np.exp(x).tolist(), strict=True))


def slopes_of(rows: Sequence[Row], names: Sequence[Name], values: dict[Name, float], predicted: Floats) -> Floats:
    """Change of each row's log seconds with the log of each parameter."""
    slopes = np.zeros((len(rows), len(names)))
    for column, name in enumerate(names):
        moved = {**values, name: values[name] * math.exp(TINY)}
        for i, row in enumerate(rows):
            if name[0] in ("", row.arch, f"site:{row.case.source}") and not shadowed(name, row, names):
                slopes[i, column] = (log_seconds(row, moved) - predicted[i]) / TINY
    return slopes


def carried(values: dict[Name, float], unseen: str, seen: str) -> dict[Name, float]:
    """`values` with an unseen architecture's shares: its benchmarks', less what training leaves of a seen one's."""
    left = {name: values[seen, name] / start((seen, name)) for name in BY_ARCH}
    return {**values, **{(unseen, name): start((unseen, name)) * share for name, share in left.items()}}


def shadowed(name: Name, row: Row, names: Sequence[Name]) -> bool:
    """True where a narrower scope has the same parameter."""
    return not name[0].startswith("site:") and (f"site:{row.case.source}", name[1]) in names


def huber(scaled: Floats) -> Floats:
    """Weights of iteratively reweighted least squares."""
    return 1 / np.maximum(1.0, np.abs(scaled))


def report(title: str, rows: Sequence[Row], values: dict[Name, float]) -> None:
    """Errors by source."""
    for source in sorted({row.case.source for row in rows}):
        own = [row for row in rows if row.case.source == source]
        found = [price(row.step, model_of(row, values), memory=False) for row in own]
        predicted = np.array([estimate.step_seconds for estimate in found])
        inside = [
            e.interval_seconds[0] <= row.seconds <= e.interval_seconds[1] for e, row in zip(found, own, strict=True)
        ]
        measured = np.array([row.seconds for row in own])
        error = predicted / measured - 1
        rank: Callable[[Floats], Floats] = lambda v: np.argsort(np.argsort(v)).astype(float)  # noqa: E731
        rho = np.corrcoef(rank(predicted), rank(measured))[0, 1] if len(own) > 2 else math.nan
        print(
            f"{title:9s} {source:16s} n {len(own):4d}  mean {100 * np.abs(error).mean():5.1f} %  median "
            f"{100 * np.median(np.abs(error)):5.1f} %  worst {100 * np.abs(error).max():6.1f} %  bias "
            f"{100 * np.median(error):+5.1f} %  rank {rho:.3f}  in its interval {100 * np.mean(inside):.0f} %"
        )


def write(values: dict[Name, float]) -> None:
    """Put the values in the file, in place: a key's line is changed, a new key ends its table."""
    wanted: dict[str, dict[str, str]] = {}
    for (scope, field), value in values.items():
        usual = 1.0 if field == "attention" else getattr(load(find_device("a100-80gb")), field)
        if scope.startswith("site:") and 1 / SAME < value / usual < SAME:
            continue
        key, factor = _UNITS.get(field, (f"{field}_share", 1.0))
        for table in [scope.replace("site:", "site.")] if scope else ARCHES if field in BY_DEVICE else ["default"]:
            wanted.setdefault(table, {})[key] = f"{value * factor:.3g}"
    lines, table = [], ""
    for old in [*FILE.read_text("utf-8").splitlines(), "[end]"]:
        line = old
        if line.startswith("["):
            end = next((i for i in range(len(lines), 0, -1) if " = " in lines[i - 1].partition("#")[0]), len(lines))
            lines[end:end] = [f"{key} = {value}" for key, value in wanted.pop(table, {}).items()]
            table = line.strip("[]") if line != "[end]" else ""
        key = line.partition(" = ")[0]
        if key in wanted.get(table, {}):
            note = line.partition("#")[2]
            line = f"{key} = {wanted[table].pop(key)}" + (f"      #{note}" if note else "")
        if line != "[end]":
            lines.append(line)
    for table, keys in wanted.items():
        lines += ["", f"[{table}]", *(f"{key} = {value}" for key, value in keys.items())]
    FILE.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
