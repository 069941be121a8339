r"""How a node is written down: TOML tables whose keys carry their units, read into `Node`s and checked key by key.

    [my-rack]
    device = "h100-sxm-80gb"       a GPU that `--gpu` knows, or `mygpu.toml:name`
    gpus = 8
    link_gb_s = 450.0              from one GPU to the others of its node, one direction
    nics = 8
    nic_gbit_s = 400               of one network card, one direction

>>> parse_nodes("[my-rack]\ngpus = 0", "my.toml")
Traceback (most recent call last):
dnnmem.estimator.errors.UsageError: my.toml: [my-rack] lacks device, link, link_gb_s and 2 more
"""

from __future__ import annotations

from dataclasses import dataclass

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.toml_values import Key, count, number, parse_tables, price, read_table, scaled, text, texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One kind of node."""

    name: str
    """Name of its table: `dgx-h100`."""
    aliases: tuple[str, ...]
    """Other names of it."""
    device: str
    """Its GPU, as `--gpu` takes it."""
    gpus: int
    """GPUs of a node."""
    usual: bool
    """True if this is the node that is meant where only the GPU is named."""
    link: str
    """Link from GPU to GPU: `nvlink4-switch`, `nvlink3-bridge`, `pcie4`."""
    link_bytes_per_s: float
    """One GPU, one direction."""
    link_latency_seconds: float
    """One hop."""
    link_reduces: bool
    """True if the switch between the GPUs adds up what they send."""
    network: str
    """`infiniband`, `roce`, `efa`, `ethernet`; empty = none."""
    nics: int
    """Network cards that carry the traffic of GPUs; 0 = none."""
    nic_bytes_per_s: float
    """One card, one direction."""
    network_latency_seconds: float
    """One hop between nodes."""
    host_bytes_per_s: float | None
    """From one GPU to its host, one direction; None = as the GPU's bus."""
    host_gpus: int
    """GPUs that share this link, behind one switch."""
    host_latency_seconds: float
    """Of one copy."""
    price_usd_per_h: tuple[float, float] | None
    """Low and high of offers for one GPU of the node; None = unknown."""
    price_source: str
    """Evidence for the price, with its date."""
    source: str
    """Where the number of GPUs, cards and their rates come from."""
    latency_source: str
    """Where the latencies come from."""
    confidence: str
    """`sure`, or `likely` if a number is to be checked."""
    note: str
    """What to know about a number; may be empty."""


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004  (one kind of error for every rule)
    return value


def _rate(value: object) -> float:
    rate = number(value) * 1e9
    if not rate:
        raise ValueError("must be above 0")
    return rate


_KEYS: dict[str, Key] = {
    "device": Key("device", text),
    "gpus": Key("gpus", count),
    "usual": Key("usual", _flag, default=False),
    "link": Key("link", text),
    "link_gb_s": Key("link_bytes_per_s", _rate),
    "link_latency_us": Key("link_latency_seconds", scaled(1e-6)),
    "link_reduces": Key("link_reduces", _flag, default=False),
    "network": Key("network", text, ""),
    "nics": Key("nics", lambda value: count(value, least=0), 0),
    "nic_gbit_s": Key("nic_bytes_per_s", scaled(1e9 / 8), 0.0),
    "network_latency_us": Key("network_latency_seconds", scaled(1e-6), 0.0),
    "host_gb_s": Key("host_bytes_per_s", _rate, None),
    "host_gpus": Key("host_gpus", count, 1),
    "host_latency_us": Key("host_latency_seconds", scaled(1e-6), 10e-6),
    "price_usd_per_h": Key("price_usd_per_h", price, None),
    "price_source": Key("price_source", text, ""),
    "source": Key("source", text),
    "latency_source": Key("latency_source", text, ""),
    "aliases": Key("aliases", texts, ()),
    "confidence": Key("confidence", text, "likely"),
    "note": Key("note", text, ""),
}


def parse_nodes(toml: str, where: str) -> dict[str, Node]:
    """Nodes of a TOML text by name. Raises `UsageError`, beginning with `where`, for a faulty form, key or value."""
    return {name: _node(name, table, where) for name, table in parse_tables(toml, where, "nodes").items()}


def _node(name: str, table: object, where: str) -> Node:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: {name} is no table", hint="put the facts of a node under its name: [my-rack]")
    node = Node(name=name, **read_table(table, _KEYS, f"{where}: [{name}]"))
    facts = (bool(node.network), bool(node.nics), bool(node.nic_bytes_per_s))
    if any(facts) and not all(facts):
        raise UsageError(
            f"{where}: [{name}] network = {node.network!r}, nics = {node.nics}, nic_gbit_s = "
            f"{node.nic_bytes_per_s * 8 / 1e9:g}; a node has all three, or none of them"
        )
    return node
