"""Runs a training script on virtual GPUs, as one rank of many or as all of them, and brings back what each needed.

    world      --rank         processes
    1          -              one, started as `python train.py`
    N          0              one: rank 0 of N, whose peers do not exist; those that send it integers run too
    N          first,last     two, one after the other, neither knowing the other
    N          all            N at once, which find each other on this machine

Imports no torch.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from dnnmem.estimator.context_memory import context_notes
from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.exchange import WAIT_SECONDS, Exchange
from dnnmem.profilers.rank_process import RankProcess, environment_of
from dnnmem.profilers.script import TRACE_FILE
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.script_result import RankResult

MAX_PROCESSES = 16
"""Most ranks that run at once."""

_POLL_SECONDS = 0.05
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
    wait_seconds: float = WAIT_SECONDS
    """How long a rank waits for a payload of another one."""


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
    folder for the recorded steps, each called by its rank (`recorded_step`).
    Raises `UnsupportedError` if this machine has no virtual GPU or the script calls what it lacks.
    """
    ranks: tuple[int | None, ...] = run.ranks or (None,)
    together = len(ranks) == run.world_size > 1
    found: list[RankResult] = []
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
        for group in [ranks] if together else [(rank,) for rank in ranks]:
            with closing(_Job(run, base, Path(name), together=together, cache=cache)) as job:
                for rank in group:
                    say = _headed(on_output, rank) if len(ranks) > 1 else on_output
                    job.start(rank, say, on_progress if rank == ranks[0] else _ignore)
                found += [_as_known(result, run.gpu) for result in job.wait()]
            if save is not None:
                _keep_traces(Path(name), save, group)
    return tuple(found)


def _keep_traces(folder: Path, save: Path, ranks: Iterable[int | None]) -> None:
    for rank in ranks:
        trace = folder / f"rank{rank}" / TRACE_FILE
        if trace.exists():
            shutil.move(trace, recorded_step(save, rank))


def recorded_step(folder: Path, rank: int | None) -> Path:
    """Where `run_script` puts the recorded step of a rank."""
    return folder / f"rank{rank}-{TRACE_FILE}"


class _Job:
    """Processes that run at once: all ranks of a job, or one, and those that it turns out to receive from."""

    def __init__(
        self, run: ScriptRun, base: Mapping[str, str], folder: Path, *, together: bool, cache: Path | None
    ) -> None:
        self._run, self._base, self._folder, self._together, self._cache = run, base, folder, together, cache
        self._port = _free_port() if together else 1
        self._exchange = Exchange(run.wait_seconds) if run.ranks else None
        self._asked: list[RankProcess] = []
        self._helpers: dict[int, RankProcess] = {}
        self._gone: set[int] = set()

    def start(self, rank: int | None, say: Callable[[str], None], on_progress: Callable[[int], None]) -> None:
        """Start a rank whose result is asked for."""
        folder = self._folder / f"rank{rank}"
        folder.mkdir()
        self._asked.append(self._process(rank, folder, say, on_progress))

    def _process(
        self, rank: int | None, folder: Path, say: Callable[[str], None], on_progress: Callable[[int], None]
    ) -> RankProcess:
        run = self._run
        exchange = f"{self._exchange.name} {int(self._together)}" if self._exchange else ""
        environment = environment_of(
            run, self._base, rank, port=self._port, folder=folder, cache=self._cache, exchange=exchange, say=say
        )
        return RankProcess(_request(run, rank, alone=not self._together), folder, environment, say, on_progress)

    def wait(self) -> list[RankResult]:
        """Wait for all; once one has failed, the others get a little time, for they may wait for it in vain."""
        limit = max(process.deadline for process in self._asked)
        failed: RankProcess | None = None
        while not all(process.is_done() for process in self._asked) and time.monotonic() < limit:
            time.sleep(_POLL_SECONDS)
            self._tell_of_ends()
            self._start_wanted()
            if failed is None:
                failed = next((p for p in self._asked if p.is_done() and p.result().outcome != "ran"), None)
                limit = limit if failed is None else min(limit, time.monotonic() + _BEFORE_KILL_SECONDS)
        results = [self._result(process, failed) for process in self._asked]
        if self._helpers:
            note = f"to receive what ranks {_listed(self._helpers)} send, those were run too"
            results[0] = replace(results[0], notes=(*results[0].notes, note))
        return results

    def _result(self, process: RankProcess, failed: RankProcess | None) -> RankResult:
        """What came of a process; what befell it after another one's failure is that one's doing."""
        if not process.is_done():
            process.end()
            if failed is not None:
                return process.ended_with("ended", f"it was ended, for rank {failed.request.rank} had failed")
        result = process.result()
        if failed in {None, process} or result.outcome != "failed":
            return result
        return replace(result, outcome="ended")

    def _tell_of_ends(self) -> None:
        """Nobody shall wait for a rank that came to its end. One that failed ends the others soon enough."""
        for process in (*self._asked, *self._helpers.values()):
            rank = process.request.rank
            if self._exchange is None or rank is None or rank in self._gone or not process.is_done():
                continue
            helps = rank in self._helpers
            result = process.result() if helps or len(self._asked) > 1 else None
            if result is None or (result.outcome != "ran" and not helps):
                continue
            self._gone.add(rank)
            said = result.message.splitlines()[-1:] if result.outcome != "ran" else [f"after {result.steps} steps"]
            self._exchange.absent(rank, f"it has ended: {''.join(said)}")

    def _start_wanted(self) -> None:
        """Start the ranks that a lone one waits for."""
        if self._exchange is None or self._together:
            return
        for rank in sorted(self._exchange.wanted() - set(self._helpers) - {p.request.rank for p in self._asked}):
            if len(self._helpers) + 1 < MAX_PROCESSES:
                folder = Path(tempfile.mkdtemp(prefix=f"rank{rank}-", dir=self._folder))
                self._helpers[rank] = self._process(rank, folder, _ignore, _ignore)
            else:
                self._exchange.absent(rank, f"more than {MAX_PROCESSES} ranks would have to run at once")

    def close(self) -> None:
        """End all of them."""
        for process in (*self._asked, *self._helpers.values()):
            process.end()
        if self._exchange is not None:
            self._exchange.close()


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(str(rank) for rank in sorted(ranks))


def _request(run: ScriptRun, rank: int | None, *, alone: bool) -> ScriptRequest:
    """What the process of `rank` runs."""
    arguments = run.request.arguments
    if run.local_rank_option and rank is not None:
        arguments = (f"{run.local_rank_option}{rank % run.ranks_per_node}", *arguments)
    return replace(run.request, arguments=arguments, rank=rank, world_size=run.world_size, alone=alone)


def _as_known(result: RankResult, gpu: Device) -> RankResult:
    """With what is not certain of this card's context; without its size, where the virtual GPU was not told."""
    result = replace(result, notes=(*result.notes, *context_notes(gpu)))
    if gpu.context_bytes is not None:
        return result
    return replace(result, memory=tuple(replace(used, outside_bytes=None) for used in result.memory))


def _free_port() -> int:
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        port: int = it.getsockname()[1]
        return port


def _headed(say: Callable[[str], None], rank: int | None) -> Callable[[str], None]:
    return lambda line: say(f"[rank {rank}] {line}")


def _ignore(_: object) -> None:
    return
