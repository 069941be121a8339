"""Where an operator belongs: phase, module path and the user's source line, whatever calls it.

Forward: global module hooks keep the path of the running module. Backward: autograd's sequence numbers tie a node to
the forward operator that made it (a node is numbered just before its operator is dispatched). Outside modules the path
is `<loss>`, in the update it is `<optimizer>`.
"""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from dnnmem.estimator.trace import Phase
from dnnmem.profilers.unwatched import called_from, called_in, no_caller

LOSS = ("<loss>",)
"""Path of code outside all modules."""
OPTIMIZER = ("<optimizer>",)
"""Path of the update: optimizer step, gradient clipping, scaling, averaging."""

_HERE = os.path.dirname(__file__)  # noqa: PTH120 - co_filename is a str
_COMMAND_LINE = os.path.join(os.path.dirname(_HERE), "cli")  # noqa: PTH118, PTH120
_SKIPPED = tuple(folder + os.sep for folder in (os.path.dirname(torch.__file__), _HERE, _COMMAND_LINE))  # noqa: PTH120


class Place(NamedTuple):
    """Where an operator runs."""

    phase: Phase
    module: tuple[str, ...]
    source: str
    node: int | None
    """Sequence number of the autograd node that runs it, None outside backward."""


class _Mark(NamedTuple):
    """Who made an autograd node."""

    number: int
    """Counts the operators that made some."""
    operator: Any
    """It or the next one: those that only make views are passed over."""
    module: tuple[str, ...]
    source: str

    def is_of(self, node: str) -> bool:
        """True if `node` is called after the operator: `MmBackward0` after `aten.mm.default`."""
        name = str(self.operator).split(".")[1].replace("_", "") if self.operator is not None else ""
        return node.rstrip("0123456789").removesuffix("Backward").lower() == name


class ModuleTracker:
    """Follows which module runs; a context manager around the steps. Raises nothing."""

    def __init__(self, model: nn.Module) -> None:
        """`model`: the root of the paths."""
        self._paths: dict[int, tuple[str, ...]] = {}
        for name, module in model.named_modules():
            self._paths[id(module)] = tuple(name.split(".")) if name else ()
        self._owners = {id(p): tuple(name.split("."))[:-1] for name, p in model.named_parameters()}
        self.called: set[tuple[str, ...]] = set()
        """Paths of the modules that were called so far."""
        self._stack: list[tuple[str, ...]] = []
        self._by_sequence: dict[tuple[int, int], _Mark] = {}
        self._marks = 0
        self._engine_threads: set[int] = set()
        self._sequences: dict[int, int] = {}
        self._task_threads: dict[int, int] = {}
        self._main = threading.get_ident()
        self._last = (self._main, False)
        self._updating = 0
        self._after_backward = False
        self._handles: list[Any] = []
        self._is_user: dict[str, bool] = {}
        self._lines: dict[tuple[str, int], str] = {}

    def __enter__(self) -> ModuleTracker:  # noqa: PYI034  # typing.Self needs Python 3.11
        """Install the hooks."""
        hooks = nn.modules.module
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter_module),
            hooks.register_module_forward_hook(self._leave_module, always_call=True),
            register_optimizer_step_pre_hook(self._enter_update),
            register_optimizer_step_post_hook(self._leave_update),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def place(self, operator: Any = None) -> Place:
        """Where the operator that is being dispatched belongs; `operator` tells nodes of one number apart."""
        node = torch._C._current_autograd_node()
        task = torch._C._current_graph_task_id()
        if node is not None and task != -1:
            self._after_backward = True
            thread = self._thread_of(task)
            if not self._stack:
                place = self._place_of_node(node, thread)
                if torch.is_grad_enabled():
                    if no_caller():
                        self._engine_threads.add(threading.get_ident())
                    self._mark(place, operator)
                return place
            place = Place(Phase.BACKWARD, self._stack[-1], self._source(), node._sequence_nr())
            self._mark(place, operator)
            return place
        self._last = (self._main, False)
        if self._updating:
            return Place(Phase.STEP, OPTIMIZER, self._source(), None)
        if self._stack:
            self._after_backward = False
            place = Place(Phase.FORWARD, self._stack[-1], self._source(), None)
        elif called_from("_make_grads"):
            return Place(Phase.BACKWARD, LOSS, self._source(), None)
        elif self._after_backward and (not torch.is_grad_enabled() or called_in("grad_scaler.py")):
            return Place(Phase.STEP, OPTIMIZER, self._source(), None)
        else:
            place = Place(Phase.FORWARD, LOSS, self._source(), None)
        self._mark(place, operator)
        return place

    def start_step(self) -> None:
        """A new step begins."""
        self._after_backward = False

    def _thread_of(self, task: int) -> int:
        """Thread that built the graph which backward pass `task` runs: nodes are numbered by thread.

        A pass that begins while another one recomputes (reentrant checkpointing) runs a graph of that one's thread.
        """
        recomputing, thread = self._last[1], self._last[0]
        if task not in self._task_threads:
            self._task_threads[task] = thread if recomputing else self._main
        self._last = (threading.get_ident(), torch.is_grad_enabled())
        return self._task_threads[task]

    def _place_of_node(self, node: Any, thread: int) -> Place:
        """The forward operator's place.

        A graph of gradients (`create_graph`) is built by formulas in the engine's threads, and hangs on the graph of
        `thread`: where both have a node of that number, the operator's name decides, then which is newer.
        """
        number = node._sequence_nr()
        threads = (thread, *self._engine_threads)
        found = [mark for t in threads if (mark := self._by_sequence.get((t, number))) is not None]
        if found:
            mark = found[0] if len(found) == 1 else max(found, key=lambda m: (m.is_of(node.name()), m.number))
            module, source = mark.module, mark.source
        else:  # AccumulateGrad has no number of its own
            module, source = self._owners.get(id(getattr(node, "variable", None)), LOSS), ""
        return Place(Phase.BACKWARD, module, source, number)

    def _mark(self, place: Place, operator: Any) -> None:
        """Nodes numbered since the last operator belong to this one."""
        thread = threading.get_ident()
        number = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        self._marks += 1
        for i in range(self._sequences.get(thread, 0), number):
            self._by_sequence[thread, i] = _Mark(self._marks, operator, place.module, place.source)
        self._sequences[thread] = number

    def _enter_module(self, module: nn.Module, _args: object) -> None:
        path = self._paths.get(id(module))
        if path is None:
            path = self._stack[-1] if self._stack else LOSS
        else:
            self.called.add(path)
        self._stack.append(path)

    def _leave_module(self, _module: nn.Module, _args: object, _output: object) -> None:
        if self._stack:
            self._stack.pop()

    def _enter_update(self, *_: object) -> None:
        self._updating += 1

    def _leave_update(self, *_: object) -> None:
        self._updating = max(0, self._updating - 1)

    def _source(self) -> str:
        """Innermost line outside torch and dnnmem."""
        frame: FrameType | None = sys._getframe(1)
        known = self._is_user
        while frame is not None:
            name = frame.f_code.co_filename
            user = known.get(name)
            if user is None:
                user = known[name] = not (name.startswith(_SKIPPED) or name.startswith("<"))
            if user:
                key = (name, frame.f_lineno)
                line = self._lines.get(key)
                if line is None:
                    line = self._lines[key] = f"{short_path(name)}:{frame.f_lineno}"
                return line
            frame = frame.f_back
        return ""


def short_path(path: str) -> str:
    """A path for people: relative to the current folder, or from the package on."""
    here = os.getcwd() + os.sep  # noqa: PTH109 - compared with co_filename, a str
    if path.startswith(here):
        return path[len(here) :]
    for mark in ("site-packages" + os.sep, "dist-packages" + os.sep):
        if mark in path:
            return path.rpartition(mark)[2]
    return path
