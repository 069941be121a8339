"""Where a script was when an allocation failed or when it raised: its line, the module, the phase of the step.

Read from the stacks of Python frames alone, so that nothing is hooked and no allocation differs. A module's `__call__`
has the module in its frame; the outermost one is the root of the path.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from dnnmem.profilers.script_result import OutOfMemory
from dnnmem.profilers.script_stacks import find_source, frames_from, main_frames

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Names under which wrappers keep the module that they wrap."""


class Where(NamedTuple):
    """A place in a training step."""

    phase: str
    """`setup`, `forward`, `backward` or `step`."""
    module: str
    """Dotted path, empty outside modules."""
    source: str
    """`file:line` of the user's own code."""


class MemoryWatch:
    """Notes the allocations that fail, caught or not."""

    def __init__(self, roots: Sequence[str], step: Callable[[], int]) -> None:
        """Args: `roots`: folders of the user's code; `step`: how many steps are done."""
        self.failures: list[OutOfMemory] = []
        self._roots = roots
        self._step = step
        torch.cuda._lazy_call(self._attach)

    def _attach(self) -> None:
        observe: Any = torch._C
        observe._cuda_attach_out_of_memory_observer(self._failed)

    def _failed(self, device: int, asked: int, _total: int, free: int) -> None:
        where = find_place(self._roots)
        self.failures.append(
            OutOfMemory(
                message="",
                device=device,
                asked_bytes=asked,
                free_bytes=free,
                step=self._step() + 1,
                phase=where.phase,
                module=where.module,
                source=where.source,
            )
        )


def find_place(roots: Sequence[str]) -> Where:
    """Where the program is: this thread's stack, and the main thread's for what an autograd thread lacks."""
    own = list(frames_from(sys._getframe(1)))
    in_main = threading.current_thread() is threading.main_thread()
    outer = [] if in_main else main_frames()
    modules = [frame.f_locals.get("self") for frame in own if frame.f_code.co_name == "_call_impl"]
    return Where(_phase([*own, *outer], modules), _path(modules), find_source([*own, *outer], roots))


def is_out_of_memory(error: BaseException | None) -> BaseException | None:
    """The out-of-memory error that `error` is or comes from; None if it has another reason."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, torch.OutOfMemoryError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _phase(frames: Sequence[FrameType], modules: Sequence[Any]) -> str:
    names = {frame.f_code.co_name for frame in frames}
    if "_engine_run_backward" in names or torch._C._current_graph_task_id() != -1:
        return "backward"
    if any(f.f_code.co_name == "wrapper" and "optim" in f.f_code.co_filename for f in frames):
        return "step"
    started = bool(modules) or torch.autograd._get_sequence_nr() > 0  # type: ignore[attr-defined]
    return "forward" if started else "setup"


def _path(modules: Sequence[Any]) -> str:
    """Path of the innermost module in the outermost one, wrappers left out."""
    found = [module for module in modules if isinstance(module, nn.Module)]
    if not found:
        return ""
    for name, module in found[-1].named_modules():
        if module is found[0]:
            return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    return ""
