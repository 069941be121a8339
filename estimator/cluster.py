"""Which GPUs run the step together, and over what links: a cluster is so many equal nodes of equal GPUs.

    h100-sxm-80gb:8      eight of them, in the node they usually come in     (above 8: whole nodes and their network)
    dgx-h100:4           four such nodes
    my.toml:rack:4       four nodes called `rack` in a file of one's own

>>> cluster = find_cluster("dgx-h100:4")
>>> cluster.gpus, cluster.gpus_per_node, cluster.inside.name, cluster.across.bytes_per_s / 1e9
(32, 8, 'nvlink4-switch', 50.0)
>>> find_cluster("h100:2").across is None
True
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from dnnmem.estimator.device import Device
from dnnmem.estimator.devices import find_device, load_devices
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.node_file import Node, parse_nodes
from dnnmem.estimator.toml_values import parse_tables, read_file

_ALONE = 8
"""GPUs that a node of an unknown kind may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One way for bytes to leave a GPU."""

    name: str
    """`nvlink4-switch`, `nvlink3-bridge`, `xgmi`, `pcie5`, `infiniband`, `roce`, `efa`."""
    bytes_per_s: float
    """Of one GPU in one direction, from the book."""
    latency_seconds: float
    """Of one hop from GPU to GPU."""
    source: str
    """Where the numbers come from."""
    reduces: bool = False
    """True if the switch itself adds up what GPUs send (NVLink SHARP)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Equal nodes of equal GPUs."""

    name: str
    """As the user named it."""
    device: Device
    """The GPU."""
    gpus: int
    """All of them."""
    gpus_per_node: int
    """Of one node; `gpus` is a multiple of it."""
    inside: Link
    """From one GPU to the others of its node."""
    across: Link | None
    """To other nodes: one GPU's share of its node's network; None where there is one node, or no network."""
    nics_per_node: int
    """Network cards of a node; 0 = none."""
    host: Link
    """From one GPU to the memory of its host."""
    host_gpus: int = 1
    """GPUs of the cluster that share it."""
    price_usd_per_h: tuple[float, float] | None
    """Low and high of offers for one GPU; None = unknown."""

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.gpus // self.gpus_per_node


@cache
def load_nodes() -> Mapping[str, Node]:
    """All packaged nodes by name."""
    file = resources.files("dnnmem.estimator") / "specs" / "nodes.toml"
    return parse_nodes(file.read_text("utf-8"), "nodes.toml")


def find_cluster(name: str) -> Cluster:
    """The cluster called `name`: `GPU[:gpus]` or `node[:nodes]`, packaged or of a file (`file.toml[:name][:number]`).

    Raises `UsageError` for an unknown name (with the nearest ones), GPUs that do not fill whole nodes, nodes without a
    network between them, and a faulty file.
    """
    if "+" in name and ".toml" not in name:
        raise UsageError(
            f"--cluster {name} names unlike GPUs; dnnmem estimate tells what a plan costs on them, here they are equal",
            hint=f"--cluster {name.partition('+')[0]}",
        )
    wanted, count = _count(name)
    node = find_node(wanted)
    return _nodes(node, node_device(node), count, name) if node else _gpus(_device(wanted, name), count, name)


def find_node(name: str) -> Node | None:
    """The node called `name`, without regard to case and spaces, or that of `file.toml[:node]`; None = there is none.

    Raises `UsageError` for a faulty file and one without that node. A file of GPUs has none.
    """
    path, _, inside = name.rpartition(":") if re.search(r"\.toml:[^/\\]*$", name) else (name, "", "")
    if path.endswith(".toml"):
        return _pick(path, inside)
    wanted = _plain(name)
    return next((node for node in load_nodes().values() if wanted in (node.name, *node.aliases)), None)


def usual_node(device: Device) -> Node | None:
    """The node that a GPU usually comes in; None = not known."""
    return next((node for node in load_nodes().values() if node.usual and node.device == device.name), None)


def node_device(node: Node) -> Device:
    """The GPU of a node. Raises `UsageError` where it is not known."""
    try:
        return find_device(node.device)
    except UsageError as error:
        raise UsageError(
            f"[{node.name}] device = {node.device!r}: {error.message.removeprefix('--gpu ')}", hint=error.hint
        ) from None


def node_cluster(node: Node, device: Device, *, nodes: int = 1, gpus: int | None = None, name: str = "") -> Cluster:
    """`nodes` whole nodes with `device` as their GPU, or `gpus` GPUs of one."""
    network = None
    if node.nics and nodes > 1:
        share = node.nics * node.nic_bytes_per_s / node.gpus
        network = Link(
            name=node.network,
            bytes_per_s=share,
            latency_seconds=node.network_latency_seconds,
            source=node.source,
        )
    host = node.host_bytes_per_s or device.pcie_bytes_per_s
    per_node = gpus or node.gpus
    return Cluster(
        name=name or (node.name if nodes == 1 else f"{node.name}:{nodes}"),
        device=device,
        gpus=per_node * nodes,
        gpus_per_node=per_node,
        inside=Link(
            name=node.link,
            bytes_per_s=node.link_bytes_per_s,
            latency_seconds=node.link_latency_seconds,
            source=node.source,
            reduces=node.link_reduces,
        ),
        across=network,
        nics_per_node=node.nics,
        host=_host(device, host, node.host_latency_seconds, node.source),
        host_gpus=min(node.host_gpus, per_node),
        price_usd_per_h=node.price_usd_per_h or device.price_usd_per_h,
    )


def _count(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.*?)(?::(\d+))?", name)
    inside, digits = found.groups() if found else (name, None)
    if digits and not int(digits):
        raise UsageError(f"--cluster {name} has no GPU; write how many: {inside}:8")
    return inside, int(digits or 1)


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())


def _nodes(node: Node, device: Device, nodes: int, name: str) -> Cluster:
    if nodes > 1 and not node.nics:
        raise UsageError(
            f"--cluster {name} is {nodes} nodes, but {node.name} has no network",
            hint="describe the nodes and their network in a file of your own: --cluster my.toml:NAME",
        )
    return node_cluster(node, device, nodes=nodes, name=name)


def _gpus(device: Device, gpus: int, name: str) -> Cluster:
    node = usual_node(device) or _assumed(device)
    if gpus <= node.gpus:
        return node_cluster(node, device, gpus=gpus, name=name)
    if gpus % node.gpus:
        more = (gpus // node.gpus + 1) * node.gpus
        raise UsageError(
            f"{name} is {gpus} GPUs; above {node.gpus} they fill whole nodes of {node.gpus}",
            hint=f"{more - node.gpus} or {more} of them do",
        )
    return _nodes(node, device, gpus // node.gpus, name)


def _assumed(device: Device) -> Node:
    linked = device.link_bytes_per_s > 0 and device.link != "pcie"
    return Node(
        name=f"a node of {device.name}",
        aliases=(),
        device=device.name,
        gpus=_ALONE,
        usual=False,
        link=device.link if linked else f"pcie{device.pcie_generation}",
        link_bytes_per_s=device.link_bytes_per_s if linked else device.pcie_bytes_per_s,
        link_latency_seconds=0.6e-6 if linked else 1e-6,
        link_reduces=False,
        network="",
        nics=0,
        nic_bytes_per_s=0.0,
        network_latency_seconds=0.0,
        host_bytes_per_s=None,
        host_gpus=1,
        host_latency_seconds=10e-6,
        price_usd_per_h=None,
        price_source="",
        source="assumed: the links of the GPU itself",
        latency_source="NCCL's cost model",
        confidence="likely",
        note="",
    )


def _host(device: Device, rate: float, latency: float, source: str) -> Link:
    return Link(name=f"pcie{device.pcie_generation}", bytes_per_s=rate, latency_seconds=latency, source=source)


def _device(wanted: str, name: str) -> Device:
    try:
        return find_device(wanted)
    except UsageError as error:
        if not error.message.endswith("is not known") and "nearest" not in error.message:
            raise UsageError(
                error.message.replace("--gpu", "--cluster"), hint=error.hint.replace("--gpu", "--cluster")
            ) from None
    nodes = {alias: node.name for node in load_nodes().values() for alias in (node.name, *node.aliases)}
    known = [*load_nodes(), *load_devices()]
    near = difflib.get_close_matches(_plain(wanted), [*nodes, *known], n=4, cutoff=0.5)
    found = dict.fromkeys(nodes.get(match, match) for match in near)
    raise UsageError(
        f"--cluster {name} is not known" + (f"; nearest: {', '.join(found)}" if found else ""),
        hint=f"a GPU and how many (h100-sxm-80gb:8), a node ({', '.join(load_nodes())}) or a file of your own: my.toml",
    )


def _pick(path: str, name: str) -> Node | None:
    toml = read_file(path)
    tables = (parse_tables(toml, path, "nodes") or parse_tables(toml, path, "devices")).values()
    if tables and not any(isinstance(table, dict) and {"gpus", "device"} & table.keys() for table in tables):
        return None
    nodes = parse_nodes(toml, path)
    if name in nodes:
        return nodes[name]
    if len(nodes) == 1 and not name:
        return next(iter(nodes.values()))
    what = f"no node {name!r}" if name else f"{len(nodes)} nodes"
    raise UsageError(f"{path} has {what}; it holds {', '.join(nodes) or 'none'}", hint=f"write --cluster {path}:NAME")
