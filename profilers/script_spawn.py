"""Runs, of the processes that a script would start itself, the one that this rank is, in place and under watch.

    torch.multiprocessing.spawn, start_processes     PyTorch's tutorials, Lightning's ddp_spawn and ddp_notebook
    torch.distributed.launcher.api.elastic_launch    accelerate's notebook_launcher, torchrun called from Python

A process that a script starts in another way is not watched; of `multiprocessing.Process` a note says so. Lightning
looks whether somebody has started the ranks, as dnnmem has, and then starts none.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from typing import Any

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.script_imports import when_loaded
from dnnmem.profilers.script_request import ScriptRequest

_ELASTIC = "torch.distributed.launcher.api"


class Spawned:
    """Replaces what starts processes; torch is loaded."""

    def __init__(self, request: ScriptRequest) -> None:
        """`request` says which of the processes this one is."""
        self._request = request
        self._assumed: set[str] = set()
        processes: Any = importlib.import_module("torch.multiprocessing")
        processes.spawn = self._spawn
        processes.start_processes = self._spawn
        when_loaded(_ELASTIC, self._replace_elastic)
        self._note_processes()

    def notes(self) -> list[str]:
        """What was not run, in sentences."""
        return sorted(self._assumed)

    def _spawn(
        self, fn: Callable[..., Any], args: tuple[Any, ...] = (), nprocs: int = 1, *rest: Any, **more: Any
    ) -> Any:
        fn(self._index(nprocs), *args)
        return None if (*rest, more.get("join", True))[0] else _Ended()

    def _index(self, count: int) -> int:
        """Which of `count` processes of a node this one is."""
        request = self._request
        rank = request.rank or 0
        if request.alone:
            if count > 1:
                self._assumed.add(f"of {count} spawned processes, one was run")
            return rank % count
        if request.world_size % count:
            raise UnsupportedError(
                f"the script starts {count} processes, and dnnmem has started {request.world_size} ranks of it",
                hint=f"--gpus {count} shows it as many GPUs as it starts processes",
            )
        return rank % count

    def _note_processes(self) -> None:
        """Note the functions of the script itself that it starts as processes; a library's are its workers."""
        real, assumed = BaseProcess.start, self._assumed

        def start(process: Any) -> None:
            target = getattr(process, "_target", None)
            if getattr(target, "__module__", "") == "__main__":
                name = getattr(target, "__qualname__", "?")
                assumed.add(
                    f"the script started {name} as a process of its own, which was not watched; "
                    "torch.multiprocessing.spawn or torchrun would start it as a rank"
                )
            real(process)

        BaseProcess.start = start  # type: ignore[assignment, method-assign]

    def _replace_elastic(self) -> None:
        spawned = self

        class InPlace:
            def __init__(self, config: Any, entrypoint: Callable[..., Any] | str | None) -> None:
                self._config, self._entrypoint = config, entrypoint

            def __call__(self, *args: Any) -> Mapping[int, Any]:
                if not callable(self._entrypoint):
                    raise UnsupportedError(
                        f"the script starts {self._entrypoint} as processes of its own, which dnnmem does not watch",
                        hint="name what it starts: dnnmem run -- torchrun --nproc-per-node 2 train.py",
                    )
                index = spawned._index(self._config.nproc_per_node)
                size = self._config.nproc_per_node * self._config.max_nodes
                for name, number in (("RANK", index), ("LOCAL_RANK", index), ("WORLD_SIZE", size)):
                    os.environ.setdefault(name, str(number))
                return {index: self._entrypoint(*args)}

        sys.modules[_ELASTIC].elastic_launch = InPlace  # type: ignore[attr-defined]


class _Ended:
    """The processes of a spawn that was not to be waited for."""

    processes: tuple[Any, ...] = ()

    def join(self, timeout: float | None = None, grace_period: float | None = None) -> bool:
        """All have ended."""
        del timeout, grace_period
        return True
