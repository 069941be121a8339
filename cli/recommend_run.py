"""From the words of `dnnmem recommend` to its report: what is asked, what is recorded, what is kept for `explain`.

Asked --ask--> the same, checked --run--> Recorded, Report --> .dnnmem/recommend/report.json, step-8.trace.json.gz
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.units import parse_share

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.recommend import Wanted
    from dnnmem.estimator.recorded import Recorded
    from dnnmem.estimator.report import Report
    from dnnmem.estimator.search import Tally
    from dnnmem.profilers.request import Request

DEFAULT_GPU = "h100-sxm-80gb"
"""Where none is named and none is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command line; as `dnnmem recommend --help` says."""

    target: str
    """TARGET."""
    gpus: int = 1
    """`--gpus`."""
    gpu: str | None = None
    """`--gpu`."""
    cluster: str | None = None
    """`--cluster`."""
    batch: int | None = None
    """`--batch`."""
    seq: int | None = None
    """`--seq`."""
    global_batch: int | None = None
    """`--global-batch`."""
    tokens: int | None = None
    """`--tokens`."""
    objective: str = "throughput"
    """`--objective`."""
    max_techniques: int | None = None
    """`--max-techniques`."""
    only: frozenset[str] = frozenset()
    """`--only`."""
    without: frozenset[str] = frozenset()
    """`--without`."""
    allow: frozenset[str] = frozenset()
    """`--allow`."""
    headroom: str = "5%"
    """`--headroom`."""
    top: int = 10
    """`--top`."""
    verify: int = 0
    """`--verify`."""
    executor: str = "process"
    """`--executor`."""
    inputs: tuple[str, ...] = ()
    """`--input`."""
    args: tuple[str, ...] = ()
    """`--arg`."""
    optimizer: str | None = None
    """`--optimizer`."""
    seed: int | None = None
    """`--seed`."""
    timeout: float | None = None
    """`--timeout`."""
    rates: Path | None = None
    """`--rates`."""
    guessed: bool = False
    """Nobody named the GPU."""


def ask(asked: Asked) -> Asked:
    """`asked` with cluster and global batch filled in. Raises `UsageError` for what contradicts itself."""
    from dnnmem.cli.commands.outputs import choose
    from dnnmem.estimator.devices import find_device
    from dnnmem.estimator.search import OBJECTIVES
    from dnnmem.profilers.spread import EXECUTORS

    choose("--objective", asked.objective, OBJECTIVES)
    choose("--executor", asked.executor, EXECUTORS)
    headroom(asked.headroom)
    for option, count, least in (("--top", asked.top, 1), ("--gpus", asked.gpus, 1), ("--verify", asked.verify, 0)):
        if count < least:
            raise UsageError(f"{option} is {count}; it is {least} or more", hint=f"give {option} {least} or more")
    if asked.cluster is not None and asked.gpu is not None:
        raise UsageError("--gpu and --cluster both name the GPUs", hint="give one of them")
    if asked.tokens is not None:
        if asked.global_batch is not None or asked.seq is None:
            raise UsageError(
                "--tokens is a global batch in tokens: it goes with --seq, and not with --global-batch",
                hint=f"--tokens {asked.tokens} --seq 1024",
            )
        if asked.tokens % asked.seq:
            raise UsageError(f"--tokens {asked.tokens} is no whole number of sequences of {asked.seq}")
        asked = replace(asked, global_batch=asked.tokens // asked.seq)
    if asked.gpu is not None:
        find_device(asked.gpu)  # a name that is none is blamed on the option that gave it
    name = asked.cluster or f"{asked.gpu or _own_gpu()}:{asked.gpus}"
    return replace(asked, cluster=name, guessed=asked.cluster is None and asked.gpu is None)


def headroom(text: str) -> float:
    """`--headroom`, less than all of the memory. Raises `UsageError`.

    >>> headroom("5%"), headroom("0.05")
    (0.05, 0.05)
    """
    value = parse_share("--headroom", text)
    if value >= 1:
        raise UsageError(f"--headroom is {text!r}, which leaves no memory to a plan", hint="--headroom 5%")
    return value


def run(asked: Asked, environ: Mapping[str, str], *, quiet: bool, no_color: bool) -> tuple[Report, Path | None]:
    """Record, search, verify; the folder where it is kept, None if that cannot be written."""
    from dnnmem.cli.commands.estimate import own_rates
    from dnnmem.cli.recommend_store import keep
    from dnnmem.estimator.cluster import find_cluster
    from dnnmem.estimator.recommend import recommend
    from dnnmem.estimator.search_ahead import ahead_of
    from dnnmem.estimator.time_model import load

    name = asked.cluster or ""
    cluster = find_cluster(name)
    model = load(cluster.device, asked.rates or own_rates(name))
    with saying(quiet=quiet, no_color=no_color) as say:
        with ahead_of() as ahead:  # they import while the step is recorded
            say("recording the step")
            recorded, request = record(asked, cluster, environ)
            own = min(asked.batch or recorded.own_batch, recorded.own_batch)
            recorded = replace(recorded, own_batch=own)
            say("searching")
            started = time.perf_counter()
            if ahead is not None:
                ahead.know(recorded, cluster, model)
            report = recommend(
                recorded,
                wanted_of(asked, cluster),
                model,
                on_price=lambda tally: say(progress(tally, time.perf_counter() - started)),
                ahead=ahead,
            )
        if asked.verify:
            from dnnmem.cli.recommend_verify import runner_of, verified, with_predictions
            from dnnmem.estimator.rank_samples import shapes_of

            runner = runner_of(cluster, environ, asked.executor, shapes_of(recorded))
            report = verified(report, request, asked.verify, say, top=asked.top, runner=runner)
            report = with_predictions(report, recorded)
        if asked.guessed:
            report = replace(report, notes=(f"no --gpu was named: the GPU is {cluster.device.name}", *report.notes))
    return report, keep(Path.cwd(), report, recorded, asked)


def wanted_of(asked: Asked, cluster: Cluster) -> Wanted:
    """What the search is asked."""
    from dnnmem.estimator.recommend import Wanted

    return Wanted(
        cluster=cluster, objective=asked.objective, global_batch=asked.global_batch, headroom=headroom(asked.headroom),
        top=asked.top + asked.verify, max_techniques=asked.max_techniques, only=asked.only, without=asked.without,
        allow=asked.allow,
    )  # fmt: skip


def record(asked: Asked, cluster: Cluster, environ: Mapping[str, str]) -> tuple[Recorded, Request | None]:
    """The step at the micro-batches of a search: recorded, or as saved; and the request behind it."""
    from dnnmem.cli.cache import cache_folder
    from dnnmem.cli.commands.job import SAVED, prepare
    from dnnmem.estimator.recommend import samples_of_each
    from dnnmem.estimator.techniques.precision import to_record
    from dnnmem.profilers.record_sizes import of_saved, record_sizes
    from dnnmem.profilers.target import with_batch

    batch = asked.batch
    if asked.global_batch is not None:
        batch = samples_of_each(asked.global_batch, cluster)
    saved = asked.target.endswith(SAVED)
    typed: dict[str, int | float | str | None] = {
        "batch": asked.batch if saved else batch, "seq": asked.seq, "optimizer": asked.optimizer, "seed": asked.seed,
        "timeout": asked.timeout,
    }  # fmt: skip
    if not saved:
        typed |= {"device": "fake", **({} if cluster.device.vendor == "cpu" else {"gpu": _gpu_name(asked, cluster)})}
    job = prepare(asked.target, typed, environ, folder=Path.cwd(), inputs=asked.inputs, args=asked.args)
    if job.request is None:
        from dnnmem.estimator.trace_file import load_trace

        return of_saved([load_trace(Path(path))[0] for path in asked.target.split(",")]), None
    request, lines = with_batch(job.request), list[str]()
    computes = to_record(asked.allow, asked.only, asked.without)
    recorded = record_sizes(request, computes, cache=cache_folder(environ), on_output=lines.append)
    if request.batch_size == job.request.batch_size:
        return recorded, request
    note = f"no --batch was given, and {asked.target} has none of its own: a GPU takes {request.batch_size} samples"
    return replace(recorded, notes=(note,)), request


def _gpu_name(asked: Asked, cluster: Cluster) -> str:
    return asked.gpu if asked.gpu and ".toml" in asked.gpu else cluster.device.name


def _own_gpu() -> str:
    """The GPU of this machine, if it is a known one."""
    from dnnmem.estimator.devices import load_devices
    from dnnmem.profilers.monitor import gpu_names

    first = next(iter(gpu_names()), None)
    return next((device.name for device in load_devices().values() if first and device.cuda_name == first), DEFAULT_GPU)


def progress(tally: Tally, seconds: float) -> str:
    """One line while the search goes on."""
    rate = tally.considered / seconds if seconds else 0.0
    return f"searching: {tally.considered} plans, {tally.priced} priced, {tally.exact} op by op, {rate:,.0f} a second"


@contextmanager
def saying(*, quiet: bool, no_color: bool) -> Iterator[Callable[[str], None]]:
    """Something that says on stderr what is being done, in one line that changes; silent without a terminal."""
    from dnnmem.cli.console import is_terminal, make_console

    if quiet or not is_terminal(sys.stderr):
        yield lambda _: None
        return
    with make_console(sys.stderr, no_color=no_color).status("starting") as status:
        yield status.update
