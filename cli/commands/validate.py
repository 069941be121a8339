"""`dnnmem validate [CSV ...]`: how near predictions are to steps that other people measured on real GPUs.

tables -> cases -> steps recorded (once each, kept) -> predicted -> errors by source, GPU and strategy
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from dnnmem.cli.validation_run import Progress
    from dnnmem.estimator.validation.case import Case
    from dnnmem.estimator.validation.score import Prediction

PUBLISHED = Path("tests/accuracy/published")
"""Where a checkout keeps the tables."""

Tables = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[CSV]...", show_default=False, help="Tables of measured rows. [default: the published]"),
]
Source = Annotated[
    list[str] | None, typer.Option("--source", metavar="NAME", help="Only rows of this source. May be repeated.")
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="N rows of each source that can be predicted."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Record steps again that are kept from before.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write every row and result as JSON.")]
Form = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="What stdout gets: table, json or md. [default: table]")
]


def validate(
    tables: Tables = None,
    *,
    source: Source = None,
    limit: Limit = None,
    fresh: Fresh = False,
    json: Json = None,
    format_: Form = None,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Predict published steps, and tell how far off the predictions are by source, GPU and strategy.

    A table is known by its columns, so that rows of your own can be given in the same form; see docs/validate.md.
    """
    from dnnmem.cli.commands.outputs import check_outputs, choose, plan_outputs
    from dnnmem.cli.validation_run import cases, predict, record

    if format_ is not None:
        choose("--format", format_, ("table", "json", "md"))
    outputs = plan_outputs(form=format_, default="table", json=json, csv=None)
    check_outputs(outputs, None)
    chosen = choose_rows(cases(tables or published()), source or (), limit)
    with _progress(quiet=quiet, no_color=no_color) as progress:
        found = predict(chosen, record(chosen, progress, fresh=fresh), progress)
    _write(found, outputs, quiet=quiet, no_color=no_color)


def published() -> list[Path]:
    """The tables of this checkout. Raises `UsageError` where there is none."""
    from dnnmem.estimator.errors import UsageError

    for folder in (Path.cwd(), Path(__file__).parents[2]):
        found = sorted((folder / PUBLISHED).glob("*.csv"))
        if found:
            return found
    raise UsageError(
        f"no table is given, and there is no {PUBLISHED} here or beside the installed package",
        hint="name a CSV file, or run dnnmem validate in a checkout of dnnmem",
    )


def choose_rows(found: list[Case], sources: list[str] | tuple[str, ...], limit: int | None) -> list[Case]:
    """The rows of `sources` (none = all), of each `limit` that can be predicted, evenly spread.

    Raises `UsageError` for a source without rows.
    """
    from dnnmem.estimator.errors import UsageError

    names = list(dict.fromkeys(case.source for case in found))
    unknown = [name for name in sources if name not in names]
    if unknown:
        raise UsageError(
            f"--source {unknown[0]} is none of the tables' sources", hint=f"they are {', '.join(names) or 'empty'}"
        )
    chosen = []
    for name in names:
        own = [case for case in found if case.source == name and (not sources or name in sources)]
        if limit:
            own = [case for case in own if not case.reason] or own
        count = min(limit or len(own), len(own))
        chosen += [own[i * len(own) // count] for i in range(count)]
    return chosen


def _write(
    found: list[Prediction], outputs: tuple[tuple[str, Path | None], ...], *, quiet: bool, no_color: bool
) -> None:
    from dnnmem.cli.commands.deliver import tell_written
    from dnnmem.cli.commands.outputs import Output
    from dnnmem.cli.export.files import write_atomic

    for form, path in sorted(outputs, key=lambda output: output[1] is None):
        if form == "json":
            from dnnmem.cli.export.validate_json import to_json

            write_atomic(path, to_json(found)) if path is not None else sys.stdout.write(to_json(found))
        elif form == "md":
            from dnnmem.cli.render.validation import to_markdown

            sys.stdout.write(to_markdown(found))
        else:
            from dnnmem.cli.console import make_console
            from dnnmem.cli.render.validation import print_validation

            print_validation(found, make_console(sys.stdout, no_color=no_color))
    sys.stdout.flush()
    if not quiet:
        tell_written((), [Output(*output) for output in outputs])


@contextmanager
def _progress(*, quiet: bool, no_color: bool) -> Iterator[Progress]:
    """A line on stderr that changes; without a terminal, a line for each step that is recorded."""
    from dnnmem.cli.console import is_terminal, make_console

    if quiet:
        yield lambda *_: None
    elif not is_terminal(sys.stderr):
        yield _say
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Line

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Line(*columns, console=make_console(sys.stderr, no_color=no_color), transient=True) as line:
            task = line.add_task("reading")
            yield lambda what, done, total: line.update(task, description=what, completed=done, total=total)


def _say(what: str, done: int, total: int) -> None:
    if what == "recording":
        sys.stderr.write(f"{what}: {done} of {total} steps\n")
        sys.stderr.flush()
