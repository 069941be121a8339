"""Where the results of a command go: which forms to which files, and which one to stdout.

>>> plan_outputs(form=None, default="table", json="-", csv="layers.csv")
(Output(form='json', path=None), Output(form='csv', path=PosixPath('layers.csv')))
>>> plan_outputs(form=None, default="table", json="profile.json", csv=None)
(Output(form='table', path=None), Output(form='json', path=PosixPath('profile.json')))
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dnnmem.cli.export.files import check_writable
from dnnmem.estimator.errors import UsageError

FORMS = ("table", "json", "csv", "md")
"""What `--format` takes."""


class Output(NamedTuple):
    """One form of the result and its place."""

    form: str
    """A name of `FORMS`, or `html`."""
    path: Path | None
    """None = stdout."""


def plan_outputs(
    *, form: str | None, default: str, json: str | None, csv: str | None, html: str | None = None
) -> tuple[Output, ...]:
    """Outputs in the order they are written; `form` is what `--format` says, `default` what goes to stdout without it.

    Raises `UsageError` for an unknown form and where two forms want stdout.
    """
    choose("--format", form or default, FORMS)
    files = [(option, name) for option, name in (("json", json), ("csv", csv), ("html", html)) if name is not None]
    wants = dict.fromkeys(option for option, name in files if name == "-")
    words = [f"--{option} -" for option in wants]
    if form is not None and form not in wants:
        words.append(f"--format {form}")
        wants[form] = None
    if len(wants) > 1:
        raise UsageError(f"{' and '.join(words)} both want stdout", hint="give one of them a file")
    stdout = next(iter(wants), default)
    return (Output(stdout, None), *(Output(option, Path(name)) for option, name in files if name != "-"))


def check_outputs(outputs: Iterable[Output], save: Path | None) -> None:
    """Raise `UsageError` for a file that cannot be written, before the long work starts."""
    paths = [(f"--{form}", path) for form, path in outputs if path is not None]
    if save is not None:
        paths.append(("--save", save))
    for option, path in paths:
        check_writable(path, option)
    names = [path.resolve() for _, path in paths]
    twice = next((path for path in names if names.count(path) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is named by two options", hint="give each its own file")


def choose(option: str, value: str, choices: Iterable[str]) -> str:
    """`value` if it is among `choices`; raises `UsageError` with the nearest ones.

    >>> choose("--format", "josn", FORMS)
    Traceback (most recent call last):
    dnnmem.estimator.errors.UsageError: --format is 'josn'; it must be one of table, json, csv, md
    """
    choices = list(choices)
    if value in choices:
        return value
    near = difflib.get_close_matches(value, choices, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(f"{option} is {value!r}; it must be one of {', '.join(choices)}", hint=hint)
