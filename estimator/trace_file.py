"""A saved step, `.trace.json.gz`: profile once where the GPU is, estimate anywhere, without torch.

The file is gzipped JSON, one list a column and one table of strings that columns point into; lists of lists are flat
with their lengths beside them. The measurement of the same step travels with the trace.

    {"schema": "dnnmem.trace/1", "strings": ["aten.mm.default", ...], "paths": [[3, 4], ...],
     "ops": {"name": [0, ...], "module": [1, ...], ..., "events": {"count": [2, ...], "nbytes": [...], ...}},
     "storages": {"id": [...], "nbytes": [...], ...}, "setup": ..., "pinned": [...], "modules": ..., "measurement": ...}

A file is a stranger's: nothing in it is executed, and what is wrong with it is one `UsageError` with file and field.
Newer versions of the format raise too; fields that this version does not know are ignored.

>>> import pathlib, tempfile
>>> from dnnmem.estimator.profile import Measurement
>>> from dnnmem.estimator.trace import Trace
>>> with tempfile.TemporaryDirectory() as folder:
...     path = pathlib.Path(folder, "step.trace.json.gz")
...     save_trace(Trace(ops=(), storages={}), Measurement(step_seconds=0.5), path)
...     load_trace(path)[1].step_seconds
0.5
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TypeVar

from dnnmem.estimator.columns import MAX_INT, Reader, Table, describe, nested
from dnnmem.estimator.errors import TraceError, UsageError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Event, Kind, Lane, Module, Op, Origin, Part, Phase, Storage, Trace
from dnnmem.estimator.units import format_bytes
from dnnmem.estimator.whole_file import write_whole

E = TypeVar("E", bound=Enum)

SCHEMA = "dnnmem.trace/1"
"""Name and version of the format."""
MAX_TEXT_BYTES = 2**28
"""Largest file, unpacked: a step of 50,000 operators needs about 10 MiB."""
MAX_BLOCK_BYTES = 2**48
"""Largest block: far above any device's memory, and far below what sums overflow at."""
MAX_FLOPS = 2**80
"""Most flops of one op."""
_MAX_STREAM = 2**63 - 1


def save_trace(trace: Trace, measurement: Measurement, path: str | os.PathLike[str]) -> None:
    """Write both to `path`, at once or not at all; the same trace gives the same bytes.

    Raises `UsageError` if the file cannot be written.
    """
    text = json.dumps(_encode(trace, measurement), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    target = Path(path)
    try:
        write_whole(target, gzip.compress(text.encode(errors="replace"), compresslevel=4, mtime=0))
    except OSError as error:
        raise UsageError(
            f"{target}: cannot write the trace: {error.strerror or error}",
            hint="name a file in a folder that exists and is writable",
        ) from error


def load_trace(path: str | os.PathLike[str]) -> tuple[Trace, Measurement]:
    """The trace and measurement in `path`, checked; raises `UsageError` for a missing, broken or newer file."""
    reader = Reader(os.fspath(path), _read_json(os.fspath(path)))
    _check_schema(reader)
    trace = _decode(reader)
    try:
        trace.check()
    except TraceError as error:
        raise reader.error("ops", f"breaks the rules of a trace: {error}") from error
    return trace, _decode_measurement(reader.child("measurement"))


def _encode(trace: Trace, measurement: Measurement) -> dict[str, object]:
    table = Table()
    ops, storages = _encode_ops(trace.ops, table), _encode_storages(trace.storages.values(), table)
    modules = {
        "path": [table.path(m.path) for m in trace.modules],
        "type": [table.string(m.type) for m in trace.modules],
        "source": [table.string(m.source) for m in trace.modules],
        "uncalled": [k for k, m in enumerate(trace.modules) if not m.called],
    }
    origin, facts = trace.origin, measurement.facts
    return {
        "schema": SCHEMA,
        "strings": list(table.strings),
        "paths": [[table.strings[part] for part in path] for path in table.paths],
        "ops": ops,
        "storages": storages,
        "setup": _encode_events(trace.setup),
        "pinned": sorted(trace.pinned),
        "modules": modules,
        "batch": dict(trace.batch),
        "origin": {
            "target": origin.target,
            "device": origin.device,
            "gpu": origin.gpu,
            "versions": dict(origin.versions),
            "notes": list(origin.notes),
        },
        "measurement": {
            "allocated_bytes": measurement.allocated_bytes,
            "requested_bytes": measurement.requested_bytes,
            "reserved_bytes": measurement.reserved_bytes,
            "step_seconds": measurement.step_seconds,
            "context_bytes": measurement.context_bytes,
            "growth_bytes": measurement.growth_bytes,
            "facts": {name: _plain(value) for name, value in facts.items()},
        },
    }


def _plain(value: float | str) -> float | str:
    """JSON has no infinities and no NaN: a loss may be one, so it is kept as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _encode_ops(ops: Sequence[Op], table: Table) -> dict[str, object]:
    return {
        "name": [table.string(op.name) for op in ops],
        "module": [table.path(op.module) for op in ops],
        "phase": [table.string(op.phase.value) for op in ops],
        "lane": [table.string(op.lane.value) for op in ops],
        "reads": _encode_ids([op.reads for op in ops]),
        "writes": _encode_ids([op.writes for op in ops]),
        "events": {
            "count": [len(op.events) for op in ops],
            **_encode_events(list(chain.from_iterable(op.events for op in ops))),
        },
        "releases": _encode_ids([op.releases for op in ops]),
        "flops": [op.flops for op in ops],
        "masked_flops": [op.masked_flops for op in ops],
        "moved_bytes": [op.moved_bytes for op in ops],
        "workspace_bytes": [op.workspace_bytes for op in ops],
        "seconds": [op.seconds for op in ops],
        "source": [table.string(op.source) for op in ops],
    }


def _encode_storages(storages: Collection[Storage], table: Table) -> dict[str, object]:
    return {
        "id": [s.id for s in storages],
        "nbytes": [s.nbytes for s in storages],
        "kind": [table.string(s.kind.value) for s in storages],
        "shape": _encode_ids([s.shape for s in storages]),
        "dtype": [table.string(s.dtype) for s in storages],
        "module": [table.path(s.module) for s in storages],
        "name": [table.string(s.name) for s in storages],
        "channels_last": [s.channels_last for s in storages],
        "saved": [s.saved for s in storages],
        "parts": _encode_parts(storages, table),
    }


def _encode_parts(storages: Collection[Storage], table: Table) -> dict[str, object]:
    parts = list(chain.from_iterable(s.parts for s in storages))
    return {
        "count": [len(s.parts) for s in storages],
        "module": [table.path(part.module) for part in parts],
        "name": [table.string(part.name) for part in parts],
        "shape": _encode_ids([part.shape for part in parts]),
    }


def _encode_ids(groups: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    return {"count": [len(group) for group in groups], "item": list(chain.from_iterable(groups))}


def _encode_events(events: Sequence[Event]) -> dict[str, list[int]]:
    nbytes, stream, storage = (list(column) for column in zip(*events, strict=True)) if events else ([], [], [])
    return {"nbytes": nbytes, "stream": stream, "storage": storage}


def _read_json(path: str) -> object:
    """Unpack and parse, or say why not."""
    hint = "a trace is written by `dnnmem profile ... --save FILE.trace.json.gz`"
    try:
        with gzip.open(path, "rb") as file:
            text = file.read(MAX_TEXT_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not a whole gzip file: {error}", hint=hint) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot read the trace: {getattr(error, 'strerror', None) or error}", hint=hint
        ) from error
    if len(text) > MAX_TEXT_BYTES:
        raise UsageError(
            f"{path}: unpacks to more than {format_bytes(MAX_TEXT_BYTES)}; no trace is that large", hint=hint
        )
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: the gzip file does not hold JSON: {error}", hint=hint) from error
    return parsed


def _check_schema(reader: Reader) -> None:
    schema = reader.text("schema")
    match = re.fullmatch(r"dnnmem\.trace/([0-9]{1,9})", schema)
    if match is None:
        raise reader.error("schema", f"is {describe(schema)}; a trace has {SCHEMA!r}")
    if match[1] != SCHEMA.rpartition("/")[2]:
        raise UsageError(
            f"{reader.file}: field schema is {schema!r}, and this dnnmem reads {SCHEMA!r}",
            hint="the file comes from another version: upgrade dnnmem, or profile again with this one",
        )


def _decode(reader: Reader) -> Trace:
    strings: list[str] = reader.column("strings", (str,))
    paths = _decode_paths(reader, strings)
    storages = _decode_storages(reader.child("storages"), strings, paths)
    if sum(storage.nbytes for storage in storages) > _MAX_STREAM:
        raise reader.error("storages.nbytes", "adds up to more bytes than any machine has")
    by_id = {storage.id: storage for storage in storages}
    if len(by_id) != len(storages):
        raise reader.error(
            "storages.id", f"has {len(by_id)} different ids for {len(storages)} storages; each has its own"
        )
    ops = _decode_ops(reader.child("ops"), strings, paths, by_id)
    pinned = reader.ints("pinned")
    if not by_id.keys() >= set(pinned):
        raise reader.error("pinned", f"has {min(set(pinned) - by_id.keys())}, which is no storage's id")
    setup, modules, origin = reader.child("setup"), reader.child("modules"), reader.child("origin")
    names = modules.refs("path", paths)
    size = len(names)
    columns = zip(names, modules.refs("type", strings, size), modules.refs("source", strings, size), strict=True)
    others = set(modules.ints("uncalled") if modules.has("uncalled") else ())
    return Trace(
        ops=ops,
        storages=by_id,
        setup=tuple(_decode_events(setup, len(setup.column("nbytes", (int,))))),
        pinned=frozenset(pinned),
        modules=tuple(Module(path=p, type=t, source=s, called=k not in others) for k, (p, t, s) in enumerate(columns)),
        batch=reader.mapping("batch", int, str),
        origin=Origin(
            target=origin.text("target"),
            device=origin.text("device"),
            gpu=None if origin.get("gpu") is None else origin.text("gpu"),
            versions=origin.mapping("versions", str),
            notes=tuple(origin.column("notes", (str,))),
        ),
    )


def _decode_paths(reader: Reader, strings: Sequence[str]) -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = []
    for numbers in reader.column("paths", (list,)):
        row = Reader(reader.file, {"paths": numbers})
        paths.append(tuple(row.refs("paths", strings)))
    return paths


def _decode_ops(
    reader: Reader, strings: Sequence[str], paths: Sequence[tuple[str, ...]], storages: Mapping[int, Storage]
) -> tuple[Op, ...]:
    n = len(reader.column("name", (int,)))

    def ids(inner: Reader, size: int) -> list[int]:
        found = inner.ints("item", size)
        if not storages.keys() >= set(found):
            raise inner.error("item", f"has {min(set(found) - storages.keys())}, which is no storage's id")
        return found

    columns = {
        "name": reader.refs("name", strings, n),
        "module": reader.refs("module", paths, n),
        "phase": _enum(reader, "phase", Phase, strings, n),
        "lane": _enum(reader, "lane", Lane, strings, n),
        "reads": nested(reader, "reads", n, ids),
        "writes": nested(reader, "writes", n, ids),
        "events": nested(reader, "events", n, _decode_events),
        "releases": nested(reader, "releases", n, ids) if reader.has("releases") else [()] * n,
        "flops": reader.ints("flops", n, high=MAX_FLOPS),
        "masked_flops": reader.ints("masked_flops", n, high=MAX_FLOPS) if reader.has("masked_flops") else [0] * n,
        "moved_bytes": reader.ints("moved_bytes", n),
        "workspace_bytes": reader.ints("workspace_bytes", n, high=MAX_BLOCK_BYTES),
        "seconds": reader.seconds("seconds", n),
        "source": reader.refs("source", strings, n),
    }
    return tuple(Op(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))


def _decode_storages(reader: Reader, strings: Sequence[str], paths: Sequence[tuple[str, ...]]) -> tuple[Storage, ...]:
    n = len(reader.column("id", (int,)))

    def shapes(inner: Reader, size: int) -> list[tuple[int, ...]]:
        return nested(inner, "shape", size, lambda inner, size: inner.ints("item", size))

    def parts(inner: Reader, size: int) -> list[Part]:
        return list(
            map(Part, inner.refs("module", paths, size), inner.refs("name", strings, size), shapes(inner, size))
        )

    columns = {
        "id": reader.ints("id", n),
        "nbytes": reader.ints("nbytes", n, high=MAX_BLOCK_BYTES),
        "kind": _enum(reader, "kind", Kind, strings, n),
        "shape": shapes(reader, n),
        "dtype": reader.refs("dtype", strings, n),
        "module": reader.refs("module", paths, n),
        "name": reader.refs("name", strings, n),
        "channels_last": reader.column("channels_last", (bool,), n) if reader.has("channels_last") else [False] * n,
        "saved": reader.column("saved", (bool,), n),
        "parts": nested(reader, "parts", n, parts) if reader.has("parts") else [()] * n,
    }
    return tuple(Storage(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))


def _decode_events(reader: Reader, size: int) -> list[Event]:
    nbytes = reader.ints("nbytes", size, low=-MAX_BLOCK_BYTES, high=MAX_BLOCK_BYTES)
    stream = reader.ints("stream", size, low=-_MAX_STREAM, high=_MAX_STREAM)
    storage = reader.ints("storage", size, low=-MAX_INT)
    if sum(map(abs, nbytes)) > _MAX_STREAM:
        raise reader.error("nbytes", "adds up to more bytes than any step moves")
    return list(map(Event, nbytes, stream, storage))


def _enum(reader: Reader, name: str, kind: type[E], strings: Sequence[str], length: int) -> list[E]:
    known = {member.value: member for member in kind}
    texts = reader.refs(name, strings, length)
    for at, text in enumerate(texts):
        if text not in known:
            raise reader.error(name, f"has {describe(text)} at {at}; it must be one of {', '.join(known)}")
    return [known[text] for text in texts]


def _decode_measurement(reader: Reader) -> Measurement:
    seconds = Reader(reader.file, {"step_seconds": [reader.get("step_seconds")]}, reader.prefix).seconds("step_seconds")
    return Measurement(
        allocated_bytes=reader.optional("allocated_bytes"),
        requested_bytes=reader.optional("requested_bytes"),
        reserved_bytes=reader.optional("reserved_bytes"),
        step_seconds=seconds[0],
        context_bytes=reader.optional("context_bytes"),
        facts=reader.mapping("facts", int, float, str),
        growth_bytes=reader.optional("growth_bytes", low=-MAX_INT) or 0,
    )
