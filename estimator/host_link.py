"""How fast a GPU's copies to its host and back are, while the other GPUs of its node copy too.

    GPU 0 --+                                  book rate of the link, times the share that pinned copies reach,
            +-- switch -- one link -- host     over the GPUs behind one switch: data-parallel ranks copy at once
    GPU 1 --+

Both directions are lanes of their own (PCIe is full duplex). Copies reach 25 to 26 of 31.5 GB/s on A100 and 52.8 of 63
on H100 (NVIDIA/nvbandwidth, issues 11 and 24); `TimeModel.pcie` is a site's share once it is calibrated.

>>> from dnnmem.estimator.cluster import find_cluster
>>> from dnnmem.estimator.time_model import load
>>> alone, node = (find_cluster(name) for name in ("a100-sxm-80gb", "dgx-a100"))
>>> [round(copy_bytes_per_s(cluster, load(cluster.device)) / 1e9, 1) for cluster in (alone, node)]
[25.2, 12.6]
"""

from __future__ import annotations

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.time_model import TimeModel


def copy_bytes_per_s(cluster: Cluster, model: TimeModel) -> float:
    """Of one GPU, in one direction, if all of its node copy."""
    return cluster.host.bytes_per_s * model.pcie / cluster.host_gpus
