r"""Which published table a file is, told by its columns, and its rows as cases: whatever the file is called.

>>> import pathlib, tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     path = pathlib.Path(folder, "mine.csv")
...     _ = path.write_text("model,mfu_pct,hfu_pct\n22B,41.5,43.7\n")
...     [(case.source, case.line) for case in cases([path])]
[('megatron_readme_mfu', 2)]
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.validation import (
    fms,
    internevo,
    llmfoundry,
    megatron,
    timm_train,
    torchtitan,
    torchtune,
    unusable,
    vtrain,
    xmem,
)
from dnnmem.estimator.validation.case import Case


class Table(NamedTuple):
    """A published table."""

    source: str
    """Its name in reports."""
    columns: tuple[str, ...]
    """What marks it; others may be there."""
    read: Callable[[Mapping[str, str]], Case]
    """The case of a row, without its place; raises `UsageError` for a cell that it cannot take."""


TABLES = (
    Table("vtrain_multi", ("Parameters (billion)", *vtrain.COLUMNS), vtrain.read),
    Table("vtrain_single", vtrain.COLUMNS, vtrain.read),
    Table("megatron_selective_recompute_2022", megatron.COLUMNS, megatron.read),
    Table("llmfoundry_mpt_throughput", llmfoundry.COLUMNS, llmfoundry.read),
    Table("torchtitan_llama_moe_curated", torchtitan.COLUMNS, torchtitan.read),
    Table("internevo_a100_a800", internevo.COLUMNS, internevo.read),
    Table("fms_megatron_throughput", fms.COLUMNS, fms.read),
    Table("torchao_torchtune_curated", torchtune.COLUMNS, torchtune.read),
    Table("xmem_sample", xmem.COLUMNS, xmem.read),
    *(Table(name, columns, partial(unusable.read, reason=why)) for columns, (name, why) in unusable.TABLES.items()),
)
"""All that are known; the first whose columns are all there counts."""


def cases(paths: Iterable[str | PathLike[str]]) -> list[Case]:
    """The rows of tables, in order; one that cannot be predicted has a reason.

    Raises `UsageError` for a file that is no table that is known.
    """
    return [case for path in paths for case in _read(Path(path))]


def _read(path: Path) -> list[Case]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            table = _table(tuple(reader.fieldnames or ()), path)
            rows = [(reader.line_num, {name: cell for name, cell in row.items() if name}) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no CSV table: {error}", hint="a header, and a row a line, in UTF-8") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return [replace(_case(table, row), source=table.source, line=line, row=row) for line, row in rows]


def _case(table: Table, row: Mapping[str, str]) -> Case:
    try:
        return table.read(row)
    except UsageError as error:
        return Case(reason=error.message)


def _table(columns: tuple[str, ...], path: Path) -> Table:
    if set(columns).issuperset(timm_train.COLUMNS):
        layout = next((f"_{word}" for word in timm_train.LAYOUTS if word in path.name), "")
        return Table(f"timm_benchmark_train_amp{layout}", timm_train.COLUMNS, partial(timm_train.read, file=path.name))
    found = next((table for table in TABLES if set(columns).issuperset(table.columns)), None)
    if found is None:
        known = "\n".join(f"{table.source}: {', '.join(table.columns)}" for table in TABLES)
        raise UsageError(
            f"{path} has the columns {', '.join(columns) or 'none'}, which mark no table that is known",
            hint=known,
        )
    return found
