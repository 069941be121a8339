"""Many GPUs at real sizes: what passes say a rank needs, and what first, middle and last ranks need.

    python benchmarks/sharding_rows.py [--model NAME ...] [--only TEXT ...] [--gpus N ...] [--save]
    python benchmarks/sharding_rows.py --missing --save       those that are not kept yet
    python benchmarks/sharding_rows.py --ranks first last     not the middle one
    python benchmarks/sharding_rows.py --table                the tables alone

Each strategy alone on 2, 8 and 64 GPUs, and combinations of them (`sharding_ways`). The plain step is recorded without
a GPU and rewritten by the passes; the applies do the same to the model, and a virtual GPU runs one rank of it. --save
keeps the rows, bytes of a rank, in tests/accuracy/data/sharding_rows.csv, and writes the tables of docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from sharding_ways import MODELS, WAYS, Way

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import Device, find_device
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.passes import rewrite
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change
from dnnmem.estimator.replay import ReplayResult, replay_on
from dnnmem.estimator.stage_memory import stage_peak
from dnnmem.estimator.trace import Trace
from dnnmem.profilers.run import run
from dnnmem.profilers.verify import verify

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "accuracy.md"
KEPT = ROOT / "tests" / "accuracy" / "data" / "sharding_rows.csv"
START, END = "<!-- sharding rows -->", "<!-- end of sharding rows -->"
COLUMNS = (
    "model", "gpu", "name", "gpus", "rank", "settings", "predicted_allocated", "predicted_reserved", "ran_allocated",
    "ran_reserved", "message",
)  # fmt: skip
Row = dict[str, str]
_HEAD = (
    "| model | strategy | GPUs | predicted, GiB | first rank | middle | last | of what is reserved |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
)


def main() -> None:
    """Print a row as soon as it is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", nargs="*", default=list(MODELS))
    parser.add_argument("--only", nargs="*", help="names of strategies, numbers of combinations")
    parser.add_argument("--gpus", nargs="*", type=int)
    parser.add_argument("--ranks", nargs="*", default=["first", "middle", "last"])
    for name in ("missing", "save", "table"):
        parser.add_argument(f"--{name}", action="store_true")
    given = parser.parse_args()
    kept = _read()
    for way in WAYS if not given.table else ():
        if way.model not in given.model or (given.only is not None and way.name not in given.only):
            continue
        for gpus in way.gpus:
            key = _key(way, gpus)
            if (given.gpus is None or gpus in given.gpus) and not (given.missing and key in kept):
                ranks = {"first": 0, "middle": gpus // 2, "last": gpus - 1}
                rows = list(_rows(way, gpus, {ranks[name] for name in given.ranks}))
                kept = {**_read(), key: rows} if given.save else {**kept, key: rows}
                print(_line(rows), " ".join(way.changes(gpus)), flush=True)
                if given.save:
                    _keep(kept)
    if given.save or given.table:
        text = "\n".join(_tables(kept))
        before, after = DOCS.read_text("utf-8").partition(START)[0], DOCS.read_text("utf-8").partition(END)[2]
        DOCS.write_text(f"{before}{START}\n{text}\n{END}{after}", "utf-8")


@cache
def _plain(model: str) -> Trace:
    request, gpu = MODELS[model]
    return run(replace(request, device="fake", gpu=gpu), cache=cache_folder(os.environ))[0]


def _rows(way: Way, gpus: int, ranks: set[int]) -> Iterator[Row]:
    """One for each of the ranks that run."""
    request, gpu = MODELS[way.model]
    settings, device = way.changes(gpus), find_device(gpu)
    row = dict.fromkeys(COLUMNS, "") | {
        "model": way.model, "gpu": gpu, "name": way.name, "gpus": str(gpus), "settings": " ".join(settings),
    }  # fmt: skip
    try:
        plan = change(Plan(), settings)
        own = plan.sharding.strategy != "ddp"  # each rank's states are its own
        if plan.gradients.compression != "none":  # hooks begin in the third step
            request = replace(request, steps=6)
        held = {rank: _held(way.model, plan, device, rank) for rank in sorted(ranks)[: 3 if own else 1]}
    except DnnmemError as error:
        yield row | {"message": error.message}
        return
    for rank in sorted(ranks):
        said = held.get(rank, held[min(held)])
        ran = verify(request, plan, device, cache=cache_folder(os.environ), gradients=False, rank=rank)
        yield row | {
            "rank": str(rank), "predicted_allocated": str(said.peak_allocated_bytes),
            "predicted_reserved": str(said.peak_reserved_bytes), "ran_allocated": str(ran.peak_allocated_bytes or ""),
            "ran_reserved": str(ran.peak_reserved_bytes or ""),
            "message": ran.outcome.replace("_", " ") if ran.outcome != "ran" else "",
        }  # fmt: skip


def _held(model: str, plan: Plan, device: Device, rank: int) -> ReplayResult:
    """What the passes say that a rank needs."""
    chunks = rewrite(_plain(model), plan, rank=rank)
    if len(chunks) > 1:
        return stage_peak(chunks, plan, device, rank * plan.mesh.pp // plan.mesh.world_size)
    return replay_on(chunks[0], device)


def _key(way: Way, gpus: int) -> tuple[str, str, str]:
    return way.model, way.name if not way.combined else way.settings, str(gpus)


def _read() -> dict[tuple[str, str, str], list[Row]]:
    found: dict[tuple[str, str, str], list[Row]] = {}
    wanted = {(way.model, " ".join(way.changes(gpus))): _key(way, gpus) for way in WAYS for gpus in way.gpus}
    with KEPT.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if key := wanted.get((row["model"], row["settings"])):
                found.setdefault(key, []).append(row)
    return found


def _keep(kept: dict[tuple[str, str, str], list[Row]]) -> None:
    order = [_key(way, gpus) for way in WAYS for gpus in way.gpus]
    with KEPT.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for key in order for row in kept.get(key, ()))


def _tables(kept: dict[tuple[str, str, str], list[Row]]) -> Iterator[str]:
    yield from _HEAD
    for combined in (False, True):
        if combined:
            yield ""
            yield from (line.replace("strategy", "combination") for line in _HEAD)
        for way in WAYS:
            if way.combined is combined:
                yield from (_line(kept[key]) for gpus in way.gpus if (key := _key(way, gpus)) in kept)


def _line(rows: Iterable[Row]) -> str:
    """A row of the table."""
    found = list(rows)
    first = found[0]
    name = first["name"] if not first["name"].isdigit() else f"`{_short(first['settings'])}`"
    cells: dict[int, str] = {}
    reserved: list[float] = []
    for row in found:
        if not row["ran_allocated"]:
            cells[int(row["rank"] or 0)] = row["message"]
            continue
        cells[int(row["rank"])] = f"{int(row['predicted_allocated']) / int(row['ran_allocated']) - 1:+.2%}"
        reserved.append(int(row["predicted_reserved"]) / int(row["ran_reserved"]) - 1)
    cells = [cells.get(rank, "-") for rank in (0, int(first["gpus"]) // 2, int(first["gpus"]) - 1)]
    size = f"{int(first['predicted_allocated']) / 2**30:.2f}" if first["predicted_allocated"] else ""
    worst = f"{max(reserved, key=abs):+.2%}" if reserved else ""
    return f"| {first['model']} | {name} | {first['gpus']} | {size} | {' | '.join(cells)} | {worst} |"


def _short(settings: str) -> str:
    """What is set, without the parts' names."""
    return ", ".join(one.partition(".")[2].replace("=true", "") for one in settings.split())


if __name__ == "__main__":
    main()
