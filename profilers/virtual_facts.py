"""How certain the memory is that a virtual GPU adds to tensors: cuDNN's workspaces and NCCL's buffers.

Workspaces are exact where the installed cuDNN was asked, a neighbour's where it is too old and another one stands in,
and counted as 0 where nobody could answer. NCCL's are a model (`nccl_memory`). Each has facts for programs, and a
sentence for people where it is not exact.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping

import torch

from dnnmem.estimator.nccl_memory import nccl_range
from dnnmem.estimator.units import format_bytes
from dnnmem.profilers.virtual_gpu.cudnn_query import OLDEST
from dnnmem.profilers.virtual_gpu.cudnn_server import TOP
from dnnmem.profilers.virtual_gpu.cudnn_service import VARIABLE, spelled, talk

Facts = dict[str, float | int | str]


def cudnn_facts() -> Facts:
    """Which cuDNN answered, for how many operations, and the largest workspace; empty if nothing was asked."""
    return asked_facts(int(ctypes.CDLL(None).vg_dnn_unknown()), os.environ.get(VARIABLE, ""))


def asked_facts(unknown: int, address: str) -> Facts:
    """The same of the process at `address`, where `unknown` operations had no answer."""
    version = torch._C._cudnn.getVersionInt()  # torch.backends.cudnn.version raises for GPUs too old for this cuDNN
    answer = talk(address, json.dumps({"summary": True})) if address else None
    told = json.loads(answer) if answer else {"asked": 0}
    if not told["asked"] and not unknown:
        return {}
    facts: Facts = {"cudnn": spelled(version), "cudnn_operations_unknown": unknown}
    if told["asked"]:
        facts |= {
            "cudnn_asked": spelled(told["version"]),
            "cudnn_operations": told["asked"],
            "cudnn_largest_bytes": told["first_bytes"],
            "cudnn_largest_high_bytes": told["top_bytes"],
        }
    return facts


def cudnn_notes(facts: Mapping[str, float | int | str]) -> list[str]:
    """What is not certain of cuDNN's memory.

    >>> exact = {"cudnn": "9.24", "cudnn_asked": "9.24", "cudnn_operations_unknown": 0}
    >>> cudnn_notes(exact), cudnn_notes({"cudnn": "9.1", "cudnn_operations_unknown": 3})[0][-18:]
    ([], 'tell without a GPU')
    """
    notes = []
    if facts.get("cudnn_asked", facts.get("cudnn")) != facts.get("cudnn"):
        low, high = (format_bytes(int(facts[name])) for name in ("cudnn_largest_bytes", "cudnn_largest_high_bytes"))
        notes.append(
            f"cuDNN's workspaces are those of cuDNN {facts['cudnn_asked']}, a neighbour of the installed "
            f"{facts['cudnn']}, which does not tell its own: the largest is {low}, and up to {high} with another of "
            f"the {TOP} engines that it likes best"
        )
    if unknown := facts.get("cudnn_operations_unknown"):
        old = "cudnn_asked" not in facts
        why = (
            f": cuDNN {facts['cudnn']} is older than {spelled(OLDEST)}, and does not tell without a GPU" if old else ""
        )
        notes.append(f"cuDNN's workspaces of {unknown} operations are not known, and counted as 0{why}")
    return notes


def nccl_facts(nbytes: int) -> Facts:
    """NCCL's memory on the GPU that has most of it, and its interval; empty without any."""
    low, high = nccl_range(nbytes)
    return {"nccl_bytes": nbytes, "nccl_low_bytes": low, "nccl_high_bytes": high} if nbytes else {}


def nccl_notes(facts: Mapping[str, float | int | str]) -> list[str]:
    """What NCCL's memory is taken to be, with its interval."""
    if "nccl_bytes" not in facts:
        return []
    sizes = [format_bytes(int(facts[f"nccl_{name}"])) for name in ("bytes", "low_bytes", "high_bytes")]
    why = "they are worked out from the communicators, and from what was published of them"
    return [f"NCCL's buffers are taken to be {sizes[0]}, somewhere from {sizes[1]} to {sizes[2]}: {why}"]
