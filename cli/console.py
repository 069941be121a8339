"""How wide, how colourful and how chatty the output is: decided once, from the streams and the environment.

Colour needs a terminal, and yields to `--no-color`, NO_COLOR (https://no-color.org) and TERM=dumb.

>>> import io
>>> wants_color(io.StringIO())
False
>>> width_of(io.StringIO(), environ={"COLUMNS": "72"})
72
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_WIDTH = 100
"""Columns of a report that goes to a file or a pipe."""

MIN_WIDTH = 40
"""A narrower terminal gets lines that it must wrap itself."""

MAX_WIDTH = 200
"""Wider than this, a table is harder to read, not easier."""


def wants_color(stream: TextIO, *, environ: Mapping[str, str] = os.environ, no_color: bool = False) -> bool:
    """Whether to colour what goes to `stream`."""
    if no_color or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    return is_terminal(stream)


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal; False for closed and odd streams."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def is_unicode(stream: TextIO) -> bool:
    """Whether `stream` can carry block characters."""
    encoding = getattr(stream, "encoding", None) or "utf-8"  # a StringIO has none and carries everything
    return encoding.lower().replace("-", "").replace("_", "").startswith("utf")


def width_of(stream: TextIO, *, environ: Mapping[str, str] = os.environ) -> int:
    """Columns to write into: COLUMNS, else the terminal's, else `DEFAULT_WIDTH`."""
    given = environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        columns = int(given)
    elif is_terminal(stream):
        columns = shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns
    else:
        columns = DEFAULT_WIDTH
    return max(MIN_WIDTH, min(columns, MAX_WIDTH))


def say_next(*lines: str, quiet: bool, stream: TextIO | None = None) -> None:
    r"""Name what may be done next, on stderr, to a person alone: nothing without a terminal.

    >>> import io
    >>> terminal = io.StringIO()
    >>> terminal.isatty = lambda: True
    >>> say_next("dnnmem explain 1", "dnnmem export --plan 1", quiet=False, stream=terminal)
    >>> terminal.getvalue()
    'next: dnnmem explain 1\n      dnnmem export --plan 1\n'
    """
    stream = stream or sys.stderr
    if quiet or not is_terminal(stream):
        return
    stream.writelines(f"{'next:' if not place else '     '} {line}\n" for place, line in enumerate(lines))


def make_console(stream: TextIO, *, width: int | None = None, no_color: bool = False) -> Console:
    """A rich console on `stream`; without colour, text goes through it without any escape sequence."""
    from rich.console import Console

    color = wants_color(stream, no_color=no_color)
    return Console(
        file=stream,
        width=width or width_of(stream),
        force_terminal=is_terminal(stream),
        no_color=not color,
        color_system="auto" if color else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
