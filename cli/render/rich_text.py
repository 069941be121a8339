"""From rich's tables to plain lines: what a pipe, a file or a test gets, without colour and without trailing blanks."""

from __future__ import annotations

import io

from rich.console import RenderableType

from dnnmem.cli.console import make_console


def plain(renderable: RenderableType, *, width: int) -> str:
    """`renderable` as text of at most `width` columns.

    >>> plain("a line", width=40)
    'a line'
    """
    text = io.StringIO()
    make_console(text, width=width).print(renderable)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
