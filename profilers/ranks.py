"""Runs a training script on virtual GPUs, as one rank of many or as all of them, and brings back what each needed.

    world      --rank         processes
    1          -              one, started as `python train.py`
    N          0              one: rank 0 of N, whose peers do not exist
    N          first,last     two, one after the other, neither knowing the other
    N          all            N at once, which find each other on this machine

Imports no torch.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.profilers.children import end, follow, start
from dnnmem.profilers.script import RESULT_FILE, TRACE_FILE
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.script_result import RankResult
from dnnmem.profilers.virtual_gpu.launch import prepare

MAX_PROCESSES = 16
"""Most ranks that run at once."""

_QUIET = {"KINETO_LOG_LEVEL": "6", "PYTHONUNBUFFERED": "1", "GLOO_SOCKET_IFNAME": "lo"}
_TRUE_VALUES = {"DNNMEM_VGPU_KEEP": "1", "DNNMEM_VGPU_SMALL_BYTES": str(1 << 20)}
"""Small values outlive kernels, which `script_values.py` stands in for."""
_ERROR_FILE = "error.json"
_LAST_LINES = 12
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 20.0
"""How much longer than its own limit a child may take."""
_BEFORE_KILL_SECONDS = 5.0
"""How long the other ranks may take to end once one has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptRun:
    """A script, the GPUs it sees and the ranks to run."""

    request: ScriptRequest
    """The script; rank and world size are set for each process."""
    gpu: Device
    """The GPU model."""
    ranks: tuple[int, ...] | None = None
    """Ranks to run, rising; None = the script is not one of several."""
    world_size: int = 1
    """Ranks of the job."""
    ranks_per_node: int = 8
    """Of them on one node: as many GPUs a process sees."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the script's own, over those of the person."""
    local_rank_option: str = ""
    """What comes before the script's arguments, followed by the local rank; empty = nothing does."""


def parse_ranks(text: str, world_size: int) -> tuple[int, ...]:
    """Ranks of `--rank`: `0`, `0,3`, `first,last`, `all`; raises `UsageError` for others.

    >>> parse_ranks("first,last", 64), parse_ranks("all", 2)
    ((0, 63), (0, 1))
    """
    named = {"first": 0, "last": world_size - 1}
    if text == "all":
        if world_size > MAX_PROCESSES:
            raise UsageError(
                f"--rank all would start {world_size} processes; at most {MAX_PROCESSES} run at once",
                hint="--rank first,last runs two of them, each without its peers",
            )
        return tuple(range(world_size))
    found = set()
    for word in text.split(","):
        rank = named.get(word, int(word) if word.isdecimal() else -1)
        if not 0 <= rank < world_size:
            raise UsageError(
                f"--rank {text}: {word!r} is not one of {world_size} ranks; they count from 0",
                hint="--rank 0, --rank first,last or --rank all",
            )
        found.add(rank)
    return tuple(sorted(found))


def run_script(
    run: ScriptRun,
    base: Mapping[str, str],
    *,
    cache: Path | None = None,
    on_output: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int], None] = lambda _: None,
    save: Path | None = None,
) -> tuple[RankResult, ...]:
    """Run the script once for each rank, on virtual GPUs; results in the order of ranks.

    Args: `base`: the environment the script would have; `cache` keeps the virtual GPU; `on_output` gets
    the script's lines, headed by the rank where there are several; `on_progress` each step of the first rank; `save`:
    where the first rank's recorded step goes.
    Raises `UnsupportedError` if this machine has no virtual GPU or the script calls what it lacks.
    """
    ranks: tuple[int | None, ...] = run.ranks or (None,)
    together = len(ranks) == run.world_size > 1
    found: list[RankResult] = []
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        for group in [ranks] if together else [(rank,) for rank in ranks]:
            port = _free_port() if together else 1
            children: list[_Child] = []
            try:
                for rank in group:
                    folder = Path(name) / f"rank{rank}"
                    folder.mkdir()
                    environment = _environment(run, base, rank, port=port, folder=folder, cache=cache, say=on_output)
                    request = _request(run, rank, alone=not together)
                    many, first = len(ranks) > 1, rank == ranks[0]
                    say = _headed(on_output, rank) if many else on_output
                    children.append(_Child(request, folder, environment, say, on_progress if first else _ignore))
                found += [_as_known(result, run.gpu) for result in _wait(children)]
            finally:
                for child in children:
                    child.end()
            trace = children[0].folder / TRACE_FILE
            if save is not None and trace.exists() and children[0].request.rank == ranks[0]:
                shutil.move(trace, save)
    return tuple(found)


def _request(run: ScriptRun, rank: int | None, *, alone: bool) -> ScriptRequest:
    """What the process of `rank` runs."""
    arguments = run.request.arguments
    if run.local_rank_option and rank is not None:
        arguments = (f"{run.local_rank_option}{rank % run.ranks_per_node}", *arguments)
    return replace(run.request, arguments=arguments, rank=rank, world_size=run.world_size, alone=alone)


def _as_known(result: RankResult, gpu: Device) -> RankResult:
    """Without what the virtual GPU was not told: the size of this card's context."""
    if gpu.context_bytes is not None:
        return result
    return replace(result, memory=tuple(replace(used, outside_bytes=None) for used in result.memory))


class _Child:
    """One process, and what it has said so far."""

    def __init__(
        self,
        request: ScriptRequest,
        folder: Path,
        environment: Mapping[str, str],
        on_output: Callable[[str], None],
        on_progress: Callable[[int], None],
    ) -> None:
        self.request, self.folder = request, folder
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        limit = request.timeout_seconds
        self.deadline = math.inf if limit is None else time.monotonic() + limit + _GRACE_SECONDS
        (folder / "request.json").write_text(request.to_json())
        reader, writer = os.pipe()
        command = [
            sys.executable,
            "-m",
            "dnnmem.profilers.script",
            str(folder / "request.json"),
            str(folder),
            str(writer),
        ]
        self.process = start(command, environment, keep=(writer,))
        os.close(writer)

        def heard(line: str) -> None:
            self.last.append(line)
            on_output(line)

        assert self.process.stdout is not None  # noqa: S101 - a pipe was asked for
        self.threads = [
            follow(self.process.stdout, heard),
            follow(os.fdopen(reader, "rb"), lambda line: on_progress(int(line))),
        ]

    def is_done(self) -> bool:
        """Whether there is nothing more to wait for: a result, or no process."""
        return (self.folder / RESULT_FILE).exists() or self.process.poll() is not None

    def end(self) -> None:
        """End it, and hear what it said."""
        end(self.process)
        for thread in self.threads:
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
        shown = "\n".join(self.last) or "it printed nothing"
        request = self.request
        return RankResult(
            outcome=outcome,
            rank=request.rank,
            world_size=request.world_size,
            message=f"{message}; its last lines:\n{shown}",
        )

    def _death(self) -> tuple[str, str]:
        code = self.process.poll()
        if code is None:
            return "timed_out", "the process did not end, nor answer"
        if code < 0:
            return "failed", f"the process died with {signal.Signals(-code).name}"
        return "failed", f"the script left the process by itself, with exit code {code}"


def _wait(children: Sequence[_Child]) -> list[RankResult]:
    """Wait for all; once one has failed, the others get a little time, for they may wait for it in vain."""
    limit = max(child.deadline for child in children)
    while not all(child.is_done() for child in children) and time.monotonic() < limit:
        time.sleep(_POLL_SECONDS)
        if any(child.is_done() and child.result().outcome != "ran" for child in children):
            limit = min(limit, time.monotonic() + _BEFORE_KILL_SECONDS)
    results = []
    for child in children:
        done = child.is_done()
        child.end() if not done else None
        results.append(child.result())
    return results


def _environment(
    run: ScriptRun,
    base: Mapping[str, str],
    rank: int | None,
    *,
    port: int,
    folder: Path,
    cache: Path | None,
    say: Callable[[str], None],
) -> dict[str, str]:
    """The child's environment: a virtual GPU, and what torchrun would tell a rank."""
    count = 1 if rank is None else min(run.world_size, run.ranks_per_node)
    told = {} if rank is None else _torchrun(run, rank, port)
    launch = prepare(
        run.gpu,
        {**_QUIET, **base, **run.environment, **told},
        count=count,
        cache=cache,
        error_file=folder / _ERROR_FILE,
    )
    if launch.note:
        say(launch.note)
    return {**launch.environment, **(_TRUE_VALUES if run.request.values else {})}


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


def _free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        port: int = it.getsockname()[1]
        return port


def _headed(say: Callable[[str], None], rank: int | None) -> Callable[[str], None]:
    return lambda line: say(f"[rank {rank}] {line}")


def _ignore(_: int) -> None:
    return
