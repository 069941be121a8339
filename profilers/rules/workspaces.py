"""The workspaces of convolutions, asked of the real cuDNN: it tells without a GPU which engines it would offer.

It runs in a process of its own (virtual_gpu/cudnn_server.py), the same one that a virtual GPU asks, and keeps its
answers in the same files.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import torch

from dnnmem.profilers.virtual_gpu.cudnn_convolution import FALLBACK, INSTANT, Call, question, takes
from dnnmem.profilers.virtual_gpu.cudnn_query import Engine
from dnnmem.profilers.virtual_gpu.cudnn_service import talk

_WAIT_SECONDS = 60.0
"""The first question makes cuDNN load; a server that takes longer is not asked again."""


class _Numbers(NamedTuple):
    tf32: bool
    deterministic: bool


class Workspaces:
    """Called with a convolution, tells the bytes of its workspace, 0 where nobody answers."""

    def __init__(self, address: str) -> None:
        """`address`: of a running server; empty if there is none."""
        self.address = address
        """Of the server; empty from when it does not answer."""
        self.calls = 0
        """How many were asked for."""
        self.unknown = 0
        """How many of them have no answer; one that is asked for again is not counted again."""
        self._known: dict[tuple[Call, _Numbers], int] = {}

    def __call__(self, call: Call) -> int:
        """Bytes of the first engine's workspace that torch takes, as it does unless `cudnn.benchmark` is on."""
        self.calls += 1
        key = call, _numbers()
        if key not in self._known:
            engine = self._first(call, INSTANT) or self._first(call, FALLBACK)
            self.unknown += engine is None
            self._known[key] = engine.workspace_bytes if engine is not None else 0
        return self._known[key]

    def _first(self, call: Call, mode: int) -> Engine | None:
        if not self.address:
            return None
        answer = talk(self.address, json.dumps(question(call, mode)), wait_seconds=_WAIT_SECONDS)
        self.address = self.address if answer else ""
        engines = json.loads(answer) if answer else []
        if not isinstance(engines, list):
            return None
        offered = (Engine(*engine) for engine in engines)
        return next((engine for engine in offered if takes(engine, call.dtype, **_numbers()._asdict())), None)


def _numbers() -> _Numbers:
    """What the user allows cuDNN now."""
    backend = torch.backends.cudnn
    same = backend.deterministic or torch.are_deterministic_algorithms_enabled()
    return _Numbers(tf32=torch._C._get_cudnn_allow_tf32(), deterministic=same)
