r"""Measured steps of a site as a CSV file: what ran, by which plan, where, and how long it took.

    target,batch,seq,args,set,cluster,seconds,log
    model.py,8,1024,width=768 layers=12,,h100:1,0.131,
    hf:gpt2,64,1024,,mesh.dp_shard=8 sharding.strategy=zero3,h100:8,,runs/8gpu.log

`args` and `set` hold NAME=VALUE separated by spaces or semicolons. A time stands under `seconds`, or in the file under
`log`, beside the CSV. `optimizer` and `input` may be columns too; columns that are not needed may be left out.

>>> rows = parse_steps("target,batch,cluster,seconds\nmlp.py,8,a100:1,0.01\n", "steps.csv")
>>> rows[0].target, rows[0].batch, rows[0].seconds, rows[0].settings
('mlp.py', 8, 0.01, ())
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dnnmem.estimator.errors import UsageError

COLUMNS = ("target", "batch", "seq", "args", "set", "cluster", "seconds", "log", "optimizer", "input")
"""All that mean something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """One step that somebody measured."""

    target: str
    """What was trained, as `dnnmem estimate` takes it."""
    batch: int | None = None
    """Samples of a micro-batch on a rank; None = the target's own."""
    seq: int | None = None
    """Tokens of a sample; None = the target's own."""
    args: tuple[str, ...] = ()
    """NAME=VALUE for the model and the batch."""
    settings: tuple[str, ...] = ()
    """FIELD=VALUE of the plan."""
    cluster: str = ""
    """Where it ran; empty = as the command line says."""
    seconds: float | None = None
    """Of an optimizer step; None = in the log."""
    log: str = ""
    """File that tells the time; relative to the CSV."""
    optimizer: str | None = None
    """As `--optimizer`."""
    inputs: tuple[str, ...] = ()
    """As `--input`."""


def parse_steps(text: str, where: str) -> list[MeasuredStep]:
    """The rows of a CSV text. Raises `UsageError`, beginning with `where` and the line, for what cannot be meant."""
    reader = csv.DictReader(io.StringIO(text.lstrip("\ufeff")))
    names = [name.strip() for name in reader.fieldnames or ()]
    unknown = [name for name in names if name not in COLUMNS]
    if "target" not in names or not {"seconds", "log"} & set(names) or unknown:
        wrong = f"has {', '.join(unknown)}, which means nothing" if unknown else "needs target, and seconds or log"
        raise UsageError(f"{where}: the first line {wrong}", hint=f"columns: {', '.join(COLUMNS)}")
    reader.fieldnames = names
    rows = [_row(row, f"{where} line {reader.line_num}") for row in reader if any(row.values())]
    if not rows:
        raise UsageError(f"{where} has no row; one to three measured steps are enough")
    return rows


def _row(row: Mapping[str, str | None], where: str) -> MeasuredStep:
    cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if not cells["target"] or bool(cells["seconds"]) == bool(cells["log"]):
        raise UsageError(f"{where}: a row has a target, and either seconds or a log")
    return MeasuredStep(
        target=cells["target"],
        batch=_whole(cells["batch"], f"{where}: batch"),
        seq=_whole(cells["seq"], f"{where}: seq"),
        args=_words(cells["args"]),
        settings=_words(cells["set"]),
        cluster=cells["cluster"],
        seconds=_seconds(cells["seconds"], where) if cells["seconds"] else None,
        log=cells["log"],
        optimizer=cells["optimizer"] or None,
        inputs=_words(cells["input"]),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[;\s]+", text) if word)


def _whole(text: str, where: str) -> int | None:
    if text and not text.isdecimal():
        raise UsageError(f"{where} is {text!r}; it is a whole number, or empty")
    return int(text) if text else None


def _seconds(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{where}: seconds is {text!r}; it is a number above 0")
    return value
