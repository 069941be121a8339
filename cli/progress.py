"""What a person sees while the work goes on: one line on stderr that changes, and what the model's own code prints.

Nothing of it goes to stdout, which belongs to the report. Without a terminal the line is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TextIO

from dnnmem.cli.console import is_terminal, make_console


class Listeners(NamedTuple):
    """Two functions for whoever does the work."""

    on_progress: Callable[[int], None]
    """Takes the number of steps done so far."""
    on_output: Callable[[str], None]
    """Takes a line that the user's code printed, without its end."""


@contextmanager
def listening(stream: TextIO, *, quiet: bool, no_color: bool) -> Iterator[Listeners]:
    r"""Listeners that write to `stream` (stderr); they fall silent when the block ends, and the line is wiped.

    >>> import io
    >>> text = io.StringIO()
    >>> with listening(text, quiet=False, no_color=True) as listeners:
    ...     listeners.on_progress(1)
    ...     listeners.on_output("loss 2.3")
    >>> text.getvalue()
    'loss 2.3\n'
    """
    if quiet:
        yield Listeners(lambda _: None, lambda _: None)
    elif not is_terminal(stream):
        yield Listeners(lambda _: None, lambda text: _write(stream, text))
    else:
        with _line(stream, no_color=no_color) as listeners:
            yield listeners


@contextmanager
def _line(stream: TextIO, *, no_color: bool) -> Iterator[Listeners]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = make_console(stream, no_color=no_color)
    line = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    )
    with line:
        task = line.add_task("building the model", total=None)
        yield Listeners(
            lambda steps: line.update(task, description=f"training, step {steps + 1}"),
            lambda text: line.console.out(text, highlight=False),
        )


def _write(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()
