"""Counts the training steps of a program that nobody has prepared for it, and says when enough of them were made.

A step is counted where an optimizer has finished its own, and something was differentiated since its last: sub-steps of
a sharded optimizer (`step` once a group) are one, and so is a `step` that calls its parent's. Of several optimizers the
one that is behind counts. The end is called where the next step's first module runs, so that what the program does
after the update (clearing gradients, logging, averaging) belongs to the last step.

    forward backward step() zero_grad  | forward backward step() zero_grad  | forward
                       `-- 1 counted                        `-- 2 = enough     `-- ended here
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class StepCounter:
    """Hooks on all optimizers of the process."""

    def __init__(
        self, enough: int, *, on_step: Callable[[int, Sequence[Optimizer]], None], on_end: Callable[[], None]
    ) -> None:
        """Args: `on_step` hears each new step and the optimizers so far; `on_end` is called after `enough` of them."""
        self.steps = 0
        """Training steps done."""
        self._enough = enough
        self._on_step = on_step
        self._on_end = on_end
        self._done: dict[int, int] = {}
        self._last_node: dict[int, int] = {}
        self._kinds: dict[int, tuple[str, Optimizer]] = {}
        self._handle: Any = None
        self._process = os.getpid()
        register_optimizer_step_pre_hook(self._before)
        register_optimizer_step_post_hook(self._after)

    @property
    def by_optimizer(self) -> Mapping[str, int]:
        """Steps of each class of optimizers."""
        counted: Counter[str] = Counter()
        for key, done in self._done.items():
            counted[self._kinds[key][0]] += done
        return counted

    def _before(self, optimizer: Optimizer, *_: object) -> None:
        if self._handle is not None and self._is_new(optimizer):
            self._on_end()

    def _after(self, optimizer: Optimizer, *_: object) -> None:
        if not self._is_new(optimizer):
            return
        key = id(optimizer)
        self._kinds[key] = (type(optimizer).__name__, optimizer)
        self._last_node[key] = _nodes()
        self._done[key] = self._done.get(key, 0) + 1
        done = min(self._done.values())
        if done > self.steps:
            self.steps = done
            self._on_step(done, [optimizer for _, optimizer in self._kinds.values()])
        if self.steps >= self._enough and self._handle is None:
            self._handle = nn.modules.module.register_module_forward_pre_hook(self._next_step)

    def _is_new(self, optimizer: Optimizer) -> bool:
        """True if a graph was built since this optimizer's last step; a thread that builds none counts every call."""
        nodes = _nodes()
        return nodes == 0 or nodes > self._last_node.get(id(optimizer), -1)

    def _next_step(self, *_: object) -> None:
        is_fork = os.getpid() != self._process  # a worker of a DataLoader, whose transforms may be modules
        if torch._C._current_graph_task_id() == -1 and not is_fork:  # recomputing in backward is no new step
            self._on_end()


def _nodes() -> int:
    """How many nodes of graphs this thread has made."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]
