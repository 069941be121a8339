"""Where a check's result goes: stdout in one form, files in others, and what a GitHub runner reads by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.cli.commands.outputs import Output, check_outputs, choose
from dnnmem.cli.export.files import write_atomic
from dnnmem.estimator.errors import UsageError

if TYPE_CHECKING:
    from dnnmem.cli.check_run import Checked

FORMS = ("table", "json", "md", "junit", "sarif", "github", "bencher")
"""What `--format` takes."""


def plan_reports(form: str | None, files: Mapping[str, str | Path | None]) -> tuple[Output, ...]:
    """Outputs by `--format` and the files' options. Raises `UsageError` for what cannot be written."""
    stdout = choose("--format", form or "table", FORMS)
    if files.get("json") == "-":
        if form not in {None, "json"}:
            raise UsageError(f"--json - and --format {form} both want stdout", hint="give one of them a file")
        stdout = "json"
    named = [Output(kind, Path(path)) for kind, path in files.items() if path is not None and path != "-"]
    check_outputs(named, None)
    return (Output(stdout, None), *named)


def deliver(found: Sequence[Checked], outputs: Sequence[Output], environ: Mapping[str, str], *, no_color: bool) -> None:
    """Write every report; files first. On a GitHub runner, annotations and the job's summary as well."""
    for form, path in sorted(outputs, key=lambda output: output.path is None):
        if path is not None:
            write_atomic(path, _writer(form)(found))
        elif form == "table":
            from dnnmem.cli.console import make_console
            from dnnmem.cli.render.check import print_check

            print_check(found, make_console(sys.stdout, no_color=no_color))
        else:
            sys.stdout.write(_writer(form)(found))
    stdout = outputs[0].form
    if environ.get("GITHUB_ACTIONS") == "true" and stdout in {"table", "md"}:
        sys.stdout.write(_writer("github")(found))
    sys.stdout.flush()
    if summary := environ.get("GITHUB_STEP_SUMMARY"):
        _append(Path(summary), _writer("md")(found))


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"GITHUB_STEP_SUMMARY {path} cannot be written: {error.strerror or error}") from None


def _writer(form: str) -> Callable[[Sequence[Checked]], str]:
    from importlib import import_module

    writer: Callable[[Sequence[Checked]], str] = import_module(f"dnnmem.cli.export.check.{form}").render
    return writer
