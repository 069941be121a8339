"""What a program was doing when memory was allocated or freed, told from the stack frames of a memory snapshot.

    frames, innermost first                             ->   Place
    at::_ops::mm::call(...)                                  op "aten.mm"
    forward           torch/nn/modules/linear.py:125         module (..., "Linear@41")
    forward           model.py:41                            module ("model",)       source "model.py:41"
    <module>          train.py:9

A module is named after the file of its `forward`, or its class where the frame says it, and the line of the caller that
calls it: the frames hold no paths of modules. Backward runs in a thread without Python frames; there the node of
autograd says what it is.

>>> frames = [{"name": "forward", "filename": "/a/model.py", "line": 41},
...           {"name": "<module>", "filename": "/a/train.py", "line": 9}]
>>> Places().of(frames)
Place(phase=<Phase.FORWARD: 'forward'>, module=('model',), op='', source='model.py:41', role='')
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from dnnmem.estimator.trace import Phase

_OP = re.compile(r"^at::_ops::(\w+)::(?:call|redispatch)\(")
_NODE = re.compile(r"^torch::autograd::(?:generated::)?(\w+?)(?:::apply|_apply_functional)\b")
_WORKSPACE = re.compile(
    r"cublas\w*Workspace|getCurrentCUDABlas|getCUDABlasLt|[Cc]hosenWorkspaceSize|cudnn.*[Ww]orkspace"
)
_ENGINE = "torch::autograd::Engine"
_BUILDING = frozenset({"__init__", "_apply", "reset_parameters", "to_empty", "_init_weights"})
_LIBRARY = "/torch/"
_MAKERS = ("empty", "resize_", "new_empty")
"""Operators that others call for memory: they do not say what it is for."""
_OUTSIDE = {Phase.FORWARD: ("<loss>",), Phase.BACKWARD: ("<backward>",), Phase.STEP: ("<optimizer>",)}
_RECOMPUTE = "/torch/utils/checkpoint.py"
_TYPES = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm", "batchnorm": "BatchNorm"}


class Place(NamedTuple):
    """Where in a program something happened."""

    phase: Phase
    """Forward, backward or step."""
    module: tuple[str, ...]
    """Path of the modules that were running, `<loss>` outside of all; `<backward>` and `<optimizer>` in these."""
    op: str
    """Operator (`aten.mm`) or node of autograd (`MmBackward0`); empty if the frames do not say."""
    source: str
    """The user's line, `file:line`."""
    role: str
    """`build` while a model is made or moved, `workspace` in a library's own request, `accumulate` where a gradient
    gets its place; else empty."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """One frame, read."""

    python: bool
    function: str
    line: int
    file: str
    library: bool
    """In torch, or no file at all."""
    installed: bool
    """In some package that was installed."""
    op: str
    node: str
    engine: bool
    workspace: bool
    owner: str
    """Class or file that a `forward` belongs to."""


class Places:
    """Reads stacks; a frame that many of them share is looked at once, as long as it is kept alive elsewhere."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._frames: dict[int, _Frame] = {}
        self._places: dict[tuple[int, ...], Place] = {}

    def of(self, frames: Sequence[Mapping[str, Any]]) -> Place:
        """What the program was doing; `frames` innermost first. Empty ones are a backward thread's."""
        key = tuple(map(id, frames))
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = self._place(frames)
        return found

    def _place(self, frames: Sequence[Mapping[str, Any]]) -> Place:
        read = [self._frames.get(id(frame)) or self._read(frame) for frame in frames]
        python = [frame for frame in read if frame.python]
        node = next((frame.node for frame in read if frame.node), "")
        ops = [frame.op for frame in read if frame.op]
        op = next((name for name in ops if not name.startswith(_MAKERS)), ops[0] if ops else "")
        own = [frame for frame in python if not frame.library]
        user = next((frame for frame in own if not frame.installed), own[0] if own else None)
        phase = _phase(python, engine=bool(node) or any(frame.engine for frame in read))
        return Place(
            phase=phase,
            module=_modules(python) if phase is Phase.FORWARD else _OUTSIDE[phase],
            op=f"aten.{op}" if op else node,
            source=f"{user.file.rpartition('/')[2]}:{user.line}" if user else "",
            role=_role(read, python),
        )

    def _read(self, frame: Mapping[str, Any]) -> _Frame:
        name, file = str(frame["name"]), str(frame["filename"])
        python = file.endswith(".py")
        op, node = (None, None) if python else (_OP.match(name), _NODE.match(name))
        library = _LIBRARY in file or file.startswith("<")
        qualified = name.split(".")
        stem = PurePosixPath(file).stem
        read = _Frame(
            python=python,
            function=qualified[-1],
            line=int(frame["line"]),
            file=file,
            library=library,
            installed="-packages/" in file,
            op=op[1] if op else "",
            node=node[1] if node and node[1] != "Engine" else "",
            engine=not python and _ENGINE in name,
            workspace=not python and _WORKSPACE.search(name) is not None,
            owner=qualified[-2] if len(qualified) > 1 else _TYPES.get(stem, stem.capitalize()) if library else stem,
        )
        self._frames[id(frame)] = read
        return read


def _phase(python: Sequence[_Frame], *, engine: bool) -> Phase:
    if any("/torch/optim/" in frame.file for frame in python):
        return Phase.STEP
    recomputed = any(f.file.endswith(_RECOMPUTE) and f.function in ("unpack_hook", "backward") for f in python)
    if engine or recomputed or not python or any(f.file.endswith("/torch/autograd/graph.py") for f in python):
        return Phase.BACKWARD
    return Phase.FORWARD


def _role(frames: Sequence[_Frame], python: Sequence[_Frame]) -> str:
    if any(frame.workspace for frame in frames):
        return "workspace"
    if any(frame.node == "AccumulateGrad" for frame in frames):
        return "accumulate"
    return "build" if any(frame.function in _BUILDING for frame in python) else ""


def _modules(python: Sequence[_Frame]) -> tuple[str, ...]:
    path: list[str] = []
    caller = ""
    for frame in reversed(python):
        if frame.function == "forward" and "/torch/autograd/" not in frame.file:
            path.append(f"{frame.owner}@{caller}" if caller else frame.owner)
            caller = "" if frame.library else str(frame.line)
    return tuple(path) or _OUTSIDE[Phase.FORWARD]
