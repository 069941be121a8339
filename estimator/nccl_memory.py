"""How much memory NCCL takes on a GPU, by the ways that a communicator has to other ranks: a model, by NCCL's sources.

Where two ranks of a node talk, the receiver has 10 MiB and the sender 2 for each channel (transport/p2p.cc: buffers of
the protocols LL, LL128 and Simple, 0.5 + 4.7 + 4 MiB, and a header, in pages of 2 MiB). A ring has one such pair for
each channel, a tree another; from 2.22 on they are made when they are first used (NCCL_RUNTIME_CONNECT). NVLink SHARP
(transport/nvls.cc) adds 2 buffers of 1 MiB by 16 channels, or 32, for each rank of the node. What ranks send each other
by hand has channels of its own for each peer. Beside it, published:

    8 x H100, a barrier: 1,520 MiB in use, 1,183 with one rank (KellerJordan/modded-nanogpt)  337 MiB    model 336
    8 x H100, a first all-to-all: 3.28 GB more (NVIDIA/nccl issue 1685)                     3,128 MiB        3,136
    4 x A100, an all-reduce, all connected at once: 688 MB (NVIDIA/nccl issue 964)            656 MiB          672
    2 x A100, the same: 544 MB (the same)                                                     519 MiB          336

The first three are met with 14 MiB in place of 12 for a pair: what else a communicator holds. So the interval is from
the 12 of the sources to twice the model.

>>> eight = way_bytes("nvlink4", "9.0")
>>> eight.ring // 2**20, 7 * (eight.send + eight.receive) // 2**20, 8 * eight.nvls // 2**20
(336, 3136, 256)
>>> nccl_range(336 * 2**20)
(301989888, 704643072)
"""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 2**20
_SEND_BYTES, _RECEIVE_BYTES = 2 * _MIB, 10 * _MIB
_MEASURED = 7 / 6
"""Of what the sources say."""
_HIGH = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Bytes of a communicator's ways on one GPU."""

    ring: int
    """Of large collectives."""
    tree: int
    """Of small reductions among three ranks or more."""
    nvls: int
    """NVLink SHARP, for each rank of the node; 0 where the GPUs have none."""
    send: int
    """To one rank of the node, by hand."""
    receive: int
    """From one."""


def way_bytes(link: str, compute_capability: str) -> Ways:
    """For GPUs with this link (`Device.link`); channels as NCCL reports them for such nodes when it starts."""
    major = int(compute_capability.partition(".")[0]) if compute_capability[:1].isdigit() else 0
    fast = link.startswith(("nvlink", "xgmi"))
    collective = 2 if not fast else 12 if major < 8 else 24
    peer = 2 if not fast else 16 if major < 8 else 32
    pairs = round(collective * (_SEND_BYTES + _RECEIVE_BYTES) * _MEASURED)
    sharp = 0 if major < 9 or not fast else 32 if major == 9 else 64
    return Ways(
        ring=pairs,
        tree=pairs,
        nvls=sharp * _MIB,
        send=round(peer * _SEND_BYTES * _MEASURED),
        receive=round(peer * _RECEIVE_BYTES * _MEASURED),
    )


def nccl_range(nbytes: int) -> tuple[int, int]:
    """Low and high for what the model says."""
    return round(nbytes / _MEASURED), round(nbytes * _HIGH)
