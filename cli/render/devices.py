"""GPUs and nodes as tables: one line each, or one of them in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

from rich.table import Table

from dnnmem.estimator.device import Device
from dnnmem.estimator.node_file import Node
from dnnmem.estimator.units import format_bytes

_WIDE = 88
"""Columns from which on the table has room for more than memory."""

_WIDER = 106
"""Columns from which on the table of nodes has room for their network."""


def device_table(devices: Sequence[Device], *, width: int) -> Table:
    """One line a device: memory, and where there is room, rates; `-` for what is not known."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    heads = ["name", "usable", "context"] + ["bandwidth", "bf16 dense", "arch"] * (width >= _WIDE)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i in {0, 5} else "right", no_wrap=True)
    for device in devices:
        rates = [
            f"{device.memory_bytes_per_s / 1e12:.2f} TB/s",
            _teraflops(device.flops_per_s.get("bfloat16")),
            device.arch,
        ]
        memory = [device.name, format_bytes(device.usable_bytes), format_bytes(device.context_bytes)]
        table.add_row(*memory, *(rates if width >= _WIDE else ()))
    return table


def node_table(nodes: Sequence[Node], *, width: int) -> Table:
    """One line a node: its GPUs, and where there is room, what links them; `-` for what it has not."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    heads = ["node", "GPUs", "of"] + ["inside"] * (width >= _WIDE) + ["network"] * (width >= _WIDER)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i == 1 else "left", no_wrap=True)
    for node in nodes:
        links = [
            f"{node.link} {node.link_bytes_per_s / 1e9:g} GB/s",
            f"{node.nics} x {node.nic_bytes_per_s * 8 / 1e9:g} Gbit/s {node.network}" if node.nics else "-",
        ]
        table.add_row(node.name, str(node.gpus), node.device, *links[: len(heads) - 3])
    return table


def facts(device: Device | Node) -> Table:
    """Every field of one device or node, numbers in the units of their names."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for field in fields(device):
        table.add_row(field.name, fact(field.name, getattr(device, field.name)))
    return table


def fact(name: str, value: object) -> str:
    """One field for people.

    >>> fact("usable_bytes", 2**30), fact("aliases", ("h100", "hopper")), fact("context_bytes", None)
    ('1073741824 (1.00 GiB)', 'h100, hopper', '-')
    """
    if value is None or value == "":
        return "-"
    if isinstance(value, int) and name.endswith("_bytes"):
        return f"{value} ({format_bytes(value)})"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {number:g}" for key, number in value.items()) or "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _teraflops(flops_per_s: float | None) -> str:
    return "-" if flops_per_s is None else f"{flops_per_s / 1e12:.0f} TFLOP/s"
