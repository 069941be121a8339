"""One rank of a script as a process: how it is started, what it says, how it ended. Imports no torch."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.children import end, follow, start
from dnnmem.profilers.script import RESULT_FILE
from dnnmem.profilers.script_result import RankResult
from dnnmem.profilers.virtual_gpu.launch import prepare

if TYPE_CHECKING:
    from dnnmem.profilers.ranks import ScriptRun
    from dnnmem.profilers.script_request import ScriptRequest

_QUIET = {"KINETO_LOG_LEVEL": "6", "PYTHONUNBUFFERED": "1", "GLOO_SOCKET_IFNAME": "lo"}
_ERROR_FILE = "error.json"
_LAST_LINES = 12
_GRACE_SECONDS = 20.0
"""How much longer than its own limit a process may take."""


class RankProcess:
    """One process, and what it has said so far."""

    def __init__(
        self,
        request: ScriptRequest,
        folder: Path,
        environment: Mapping[str, str],
        on_output: Callable[[str], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """Start it; `folder` is for its results, `on_progress` hears of its steps."""
        self.request, self.folder = request, folder
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        limit = request.timeout_seconds
        self.deadline = math.inf if limit is None else time.monotonic() + limit + _GRACE_SECONDS
        """When nothing more is expected of it."""
        (folder / "request.json").write_text(request.to_json())
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "dnnmem.profilers.script", str(folder / "request.json"), str(folder)]
        self._process = start([*command, str(writer)], environment, keep=(writer,))
        os.close(writer)

        def heard(line: str) -> None:
            self._last.append(line)
            on_output(line)

        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        self._threads = [
            follow(self._process.stdout, heard),
            follow(os.fdopen(reader, "rb"), lambda line: on_progress(int(line))),
        ]

    def is_done(self) -> bool:
        """Whether there is nothing more to wait for: a result, or no process."""
        return (self.folder / RESULT_FILE).exists() or self._process.poll() is not None

    def end(self) -> None:
        """End it, and hear what it said."""
        end(self._process)
        for thread in self._threads:
            thread.join(timeout=2)

    def result(self) -> RankResult:
        """What it wrote, or what its death says; raises a `DnnmemError` for a call that the virtual GPU lacks."""
        told = self.folder / _ERROR_FILE
        if told.exists():
            said = json.loads(told.read_text())
            raise UnsupportedError(said["message"], hint=said["hint"])
        path = self.folder / RESULT_FILE
        if path.exists():
            return RankResult.from_json(path.read_text())
        outcome, message = self._death()
        shown = "\n".join(self._last) or "it printed nothing"
        return self.ended_with(outcome, f"{message}; its last lines:\n{shown}")

    def ended_with(self, outcome: str, message: str) -> RankResult:
        """A result for a process that wrote none."""
        return RankResult(outcome=outcome, rank=self.request.rank, world_size=self.request.world_size, message=message)

    def _death(self) -> tuple[str, str]:
        code = self._process.poll()
        if code is None:
            return "timed_out", "the process did not end, nor answer"
        if code < 0:
            return "failed", f"the process died with {signal.Signals(-code).name}"
        return "failed", f"the script left the process by itself, with exit code {code}"


def environment_of(
    run: ScriptRun,
    base: Mapping[str, str],
    rank: int | None,
    *,
    port: int,
    folder: Path,
    cache: Path | None,
    exchange: str,
    say: Callable[[str], None],
) -> dict[str, str]:
    """The process's environment: a virtual GPU, and what torchrun would tell a rank.

    `exchange`: name of the socket by which ranks pass payloads, and 1 if all of them run, else 0; may be empty.
    """
    count = 1 if rank is None else min(run.world_size, run.ranks_per_node)
    told = {} if rank is None else _torchrun(run, rank, port)
    wished = {**_QUIET, **base, **run.environment, **told}
    launch = prepare(run.gpu, wished, count=count, cache=cache, error_file=folder / _ERROR_FILE)
    if launch.note:
        say(launch.note)
    name, _, together = exchange.partition(" ")
    passed = {"DNNMEM_VGPU_EXCHANGE": f"{name} {rank} {together}"} if exchange and rank is not None else {}
    return {**launch.environment, **passed}


def _torchrun(run: ScriptRun, rank: int, port: int) -> dict[str, str]:
    """What `torchrun` tells its processes (torch/distributed/elastic/agent/server/local_elastic_agent.py)."""
    per_node = min(run.world_size, run.ranks_per_node)
    node, local = divmod(rank, per_node)
    numbers = {
        "RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": run.world_size, "LOCAL_WORLD_SIZE": per_node,
        "GROUP_RANK": node, "GROUP_WORLD_SIZE": -(-run.world_size // per_node), "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": run.world_size, "MASTER_PORT": port, "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_MAX_RESTARTS": 0, "OMP_NUM_THREADS": 1,
    }  # fmt: skip
    words = {"MASTER_ADDR": "127.0.0.1", "ROLE_NAME": "default", "TORCHELASTIC_RUN_ID": "none"}
    return {**words, **{name: str(number) for name, number in numbers.items()}}
