"""`dnnmem devices [NAME]`: the GPUs that `--gpu` knows and the nodes that `--cluster` knows, or one in full.

dnnmem devices                     both tables
dnnmem devices show h100           one GPU; `show` may be left out
dnnmem devices dgx-h100            one node
dnnmem devices my.toml:rack        one of a file of one's own, which is checked
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from dnnmem.estimator.device import Device
    from dnnmem.estimator.node_file import Node

FORMS = ("table", "json")
"""What `--format` takes."""

SCHEMA = "dnnmem.devices/1"
"""Of the JSON."""


def devices(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[show] NAME", show_default=False, help="One GPU or node, in full."),
    ] = None,
    *,
    format_: Annotated[str, typer.Option("--format", metavar="NAME", help="table or json.")] = "table",
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour.")] = False,
) -> None:
    """List the GPUs and nodes that dnnmem knows, for --gpu and --cluster."""
    from rich.console import Group

    from dnnmem.cli.commands.outputs import choose
    from dnnmem.cli.console import make_console
    from dnnmem.cli.render.devices import device_table, facts, node_table
    from dnnmem.cli.render.rich_text import plain

    form = choose("--format", format_, FORMS)
    name = _one(names or [])
    gpus, nodes = find(name)
    if form == "json":
        sys.stdout.write(to_json(gpus, nodes))
        return
    console = make_console(sys.stdout, no_color=no_color)
    if name:
        shown: Table | Group = facts(gpus[0] if gpus else nodes[0])
    else:
        shown = Group(device_table(gpus, width=console.width), "", node_table(nodes, width=console.width))
    if console.no_color:
        sys.stdout.write(plain(shown, width=console.width) + "\n")
    else:
        console.print(shown)


def _one(names: Sequence[str]) -> str:
    from dnnmem.estimator.errors import UsageError

    wanted = names[1:] if names[:1] == ["show"] else names
    if len(wanted) > 1:
        raise UsageError(f"devices shows one at a time, not {', '.join(wanted)}", hint=f"dnnmem devices {wanted[0]}")
    if names and not wanted:
        raise UsageError("devices show names nothing", hint="dnnmem devices lists them; dnnmem devices show h100")
    return wanted[0] if wanted else ""


def find(name: str) -> tuple[list[Device], list[Node]]:
    """The GPU or the node called `name`; all of both for an empty one. Raises `UsageError` for an unknown one."""
    from dnnmem.estimator.cluster import find_node, load_nodes
    from dnnmem.estimator.devices import find_device, load_devices

    if not name:
        return list(load_devices().values()), list(load_nodes().values())
    node = find_node(name)
    return ([], [node]) if node else ([find_device(name)], [])


def to_json(gpus: Sequence[Device], nodes: Sequence[Node]) -> str:
    """GPUs and nodes as JSON: bytes, seconds, bytes and flops a second, null for what is not known."""
    import json
    from dataclasses import asdict

    tables = {"devices": [asdict(gpu) for gpu in gpus], "nodes": [asdict(node) for node in nodes]}
    return json.dumps({"schema": SCHEMA, **tables}, indent=2, default=dict) + "\n"
