"""`dnnmem diff A B`: what grew between two steps, where and since when, largest first.

Each of the two is a saved trace, a memory snapshot, or a profile that `--json` wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from dnnmem.estimator.diff import Difference, Side

_KINDS = "a saved *.trace.json.gz, a memory snapshot (*.pickle) or a profile (*.json)"
Before = Annotated[Path, typer.Argument(metavar="A", show_default=False, help=f"What it was: {_KINDS}.")]
After = Annotated[Path, typer.Argument(metavar="B", show_default=False, help="What it is: one of the same.")]
Top = Annotated[int, typer.Option("--top", metavar="N", help="Lines of the table of modules; 0 for all.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the whole comparison as JSON.")]
Form = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="What stdout gets: table, json or md. [default: table]")
]


def diff(
    before: Before,
    after: After,
    *,
    gpu: o.Gpu = None,
    json: Json = None,
    html: o.Html = None,
    format_: Form = None,
    top: Top = 20,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Show what grew between two steps, by part, module and kind, and since which line: largest first."""
    from dnnmem.cli.commands.deliver import tell_written
    from dnnmem.cli.commands.outputs import check_outputs, choose, plan_outputs
    from dnnmem.cli.export.files import write_atomic
    from dnnmem.cli.render.difference import print_difference
    from dnnmem.estimator.diff import compare

    if format_ is not None:
        choose("--format", format_, ("table", "json", "md"))
    outputs = plan_outputs(form=format_, default="table", json=json, csv=None, html=html)
    check_outputs(outputs, None)
    found = compare(load_side(before, gpu), load_side(after, gpu))
    for form, path in sorted(outputs, key=lambda output: output.path is None):
        if path is not None:
            write_atomic(path, _text(form, found, top))
        elif form == "table":
            from dnnmem.cli.console import make_console

            print_difference(found, make_console(sys.stdout, no_color=no_color), top=top)
        else:
            sys.stdout.write(_text(form, found, top))
    sys.stdout.flush()
    if not quiet:
        tell_written((), outputs)


def _text(form: str, found: Difference, top: int) -> str:
    if form == "json":
        from dnnmem.cli.export.diff_json import to_json

        return to_json(found)
    if form == "html":
        from dnnmem.cli.render.html.difference import diff_page

        return diff_page(found)
    from dnnmem.cli.render.difference import to_markdown

    return to_markdown(found, top=top)


def load_side(path: Path, gpu: str | None = None) -> Side:
    """One of the two to compare. Raises `UsageError` for a file that is none of the three."""
    from dnnmem.cli.commands.deliver import make_profile
    from dnnmem.cli.commands.view import load_step
    from dnnmem.estimator.devices import find_device
    from dnnmem.estimator.diff import Side

    if path.suffix == ".json":
        from dnnmem.cli.export.profile_json import from_json

        return Side(profile=from_json(path))
    trace, measurement, curve = load_step(path)
    return Side(profile=make_profile(trace, measurement, find_device(gpu) if gpu else None, curve), trace=trace)
