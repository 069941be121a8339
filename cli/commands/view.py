"""`dnnmem view FILE`: the report of a step that somebody else recorded, from a memory snapshot or a saved trace.

snapshot.pickle or step.trace.json.gz -> Trace, Measurement -> the report of `dnnmem profile`, or a file for viewers
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from dnnmem.estimator.profile import Measurement
    from dnnmem.estimator.timeline import Timeline
    from dnnmem.estimator.trace import Trace

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        show_default=False,
        help="What torch.cuda.memory._dump_snapshot wrote (*.pickle), or what --save did (*.trace.json.gz).",
    ),
]
Index = Annotated[
    int | None, typer.Option("--index", metavar="N", help="Which GPU of a snapshot. [default: the busiest]")
]
SnapshotFile = Annotated[
    Path | None,
    typer.Option("--snapshot", metavar="FILE", help="Write a memory snapshot, for pytorch.org/memory_viz."),
]
Perfetto = Annotated[
    Path | None, typer.Option("--perfetto", metavar="FILE", help="Write a trace, for ui.perfetto.dev.")
]

_SCHEMA_WITHIN = 4096
"""A file of ours says in its first bytes what it is."""
_SHOWN = "view shows what torch.cuda.memory._dump_snapshot wrote (*.pickle), or what --save did (*.trace.json.gz)"
_INSTEAD = {
    b"profile": "a profile is compared with another one by dnnmem diff A B; its step is viewed if --save wrote it",
    b"diff": f"a comparison is printed by dnnmem diff A B, of the two files that it was made from; {_SHOWN}",
    b"run": "a run is printed by dnnmem run; its memory is viewed if the script dumps a snapshot",
    b"estimate": "a plan is priced again by dnnmem estimate",
    b"plan": "a plan is priced by dnnmem estimate",
    b"validate": "published measurements are compared again by dnnmem validate",
    b"devices": "GPUs are listed by dnnmem devices",
}
"""What to do with another file of ours, by the name in its `schema`."""


def view(
    file: File,
    *,
    index: Index = None,
    gpu: o.Gpu = None,
    format_: o.Format = None,
    json: o.Json = None,
    csv: o.Csv = None,
    html: o.Html = None,
    snapshot: SnapshotFile = None,
    perfetto: Perfetto = None,
    depth: o.Depth = None,
    everything: o.All = False,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Show a memory snapshot or a saved step: what is alive at the peak, whose it is, and what would lower it."""
    from dnnmem.cli.commands.deliver import Delivery, deliver
    from dnnmem.cli.commands.outputs import check_outputs, plan_outputs
    from dnnmem.cli.export.files import check_writable, write_atomic
    from dnnmem.estimator.devices import find_device

    outputs = plan_outputs(form=format_, default="table", json=json, csv=csv, html=html)
    check_outputs(outputs, None)
    for option, path in (("--snapshot", snapshot), ("--perfetto", perfetto)):
        if path is not None:
            check_writable(path, option)
    device = find_device(gpu) if gpu else None
    trace, measurement, curve = load_step(file, index)
    written = []
    if snapshot is not None:
        from dnnmem.profilers.snapshot_file import save_snapshot

        save_snapshot(trace, snapshot)
        written.append(snapshot)
    if perfetto is not None:
        from dnnmem.cli.export.perfetto_json import to_perfetto

        write_atomic(perfetto, to_perfetto(trace))
        written.append(perfetto)
    to = Delivery(
        outputs=outputs,
        device=device,
        depth=depth,
        everything=everything,
        quiet=quiet,
        no_color=no_color,
        written=written,
    )
    deliver(trace, measurement, to, curve)


def load_step(path: Path, index: int | None = None) -> tuple[Trace, Measurement, Timeline | None]:
    """The step in a saved trace or a memory snapshot, told apart by its first bytes; a snapshot with its timeline.

    Raises `UsageError` for a file that is neither, and for `index` with a saved trace.
    """
    from dnnmem.estimator.errors import UsageError

    try:
        with path.open("rb") as file:
            start = file.read(_SCHEMA_WITHIN)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if start.lstrip()[:1] == b"{":
        schema = re.search(rb'"schema": ?"dnnmem\.(\w+)/', start)
        raise UsageError(
            f"{path} is JSON, and no memory snapshot or saved step",
            hint=_INSTEAD.get(schema[1] if schema else b"", _SHOWN),
        )
    if start[:2] != b"\x1f\x8b":
        from dnnmem.profilers.snapshot import load_snapshot
        from dnnmem.profilers.snapshot_trace import snapshot_trace

        return snapshot_trace(load_snapshot(path, index), path.name)
    if index is not None:
        raise UsageError(f"{path} is a recorded step of one GPU: --index cannot choose another")
    from dnnmem.estimator.trace_file import load_trace

    return (*load_trace(path), None)
