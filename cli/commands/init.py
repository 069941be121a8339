"""`dnnmem init`: writes a model.py to start from, with every hook that dnnmem looks for and why it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dnnmem.estimator.errors import UsageError


def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path("model.py"),
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented model.py to start from."""
    from dnnmem.cli.export.files import check_writable, write_atomic
    from dnnmem.profilers.template import TEMPLATE

    if path.suffix != ".py":
        raise UsageError(f"{path} does not end with .py; it will be a Python file", hint=f"dnnmem init {path}.py")
    if path.exists() and not force:
        raise UsageError(
            f"{path} is there already and stays as it is", hint="name another file, or replace it with --force"
        )
    check_writable(path, "FILE")
    write_atomic(path, TEMPLATE.replace(" model.py", f" {path}"))
    typer.echo(f"wrote {path}; put your model in; next: dnnmem profile {path}")
