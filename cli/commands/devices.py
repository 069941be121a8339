"""`dnnmem devices [NAME]`: the GPUs that `--gpu` knows, or all that is known of one, with its sources."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from dnnmem.estimator.device import Device

FORMS = ("table", "json")
"""What `--format` takes."""


def devices(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="One of them, in full.")
    ] = None,
    *,
    format_: Annotated[str, typer.Option("--format", metavar="NAME", help="table or json.")] = "table",
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour.")] = False,
) -> None:
    """List the GPUs that dnnmem knows, for --gpu."""
    from dnnmem.cli.commands.outputs import choose
    from dnnmem.cli.console import make_console
    from dnnmem.cli.render.devices import device_facts, device_table
    from dnnmem.cli.render.rich_text import plain
    from dnnmem.estimator.devices import find_device, load_devices

    form = choose("--format", format_, FORMS)
    found = [find_device(name)] if name is not None else list(load_devices().values())
    if form == "json":
        sys.stdout.write(to_json(found))
        return
    console = make_console(sys.stdout, no_color=no_color)
    table: Table = device_facts(found[0]) if name is not None else device_table(found, width=console.width)
    if console.no_color:
        sys.stdout.write(plain(table, width=console.width) + "\n")
    else:
        console.print(table)


def to_json(found: list[Device]) -> str:
    """The devices as a JSON list: bytes, bytes and flops a second, null for what is not known."""
    import json
    from dataclasses import asdict

    return json.dumps([{**asdict(device)} for device in found], indent=2, default=dict) + "\n"
