"""From the words of `dnnmem batch` to its answer: two sizes are recorded, all others follow from them.

BatchAsked --child--> traces at 8 and 16 --refit, replay--> the largest that fits --recorded, run--> Batches
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.cli.cache import cache_folder
from dnnmem.cli.recommend_run import headroom, saying
from dnnmem.estimator.batch_size import Point, knee, largest, point
from dnnmem.estimator.errors import DnnmemError, UsageError
from dnnmem.estimator.scale import refit
from dnnmem.profilers.record_sizes import record_batches

if TYPE_CHECKING:
    from dnnmem.estimator.device import Device
    from dnnmem.estimator.trace import Trace
    from dnnmem.profilers.request import Request

_LOOKS = 3
"""Largest batches that are recorded, at most."""
SIZES = (8, 16)
"""What is recorded: small sizes have kernels of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAsked:
    """The command line; as `dnnmem batch --help` says."""

    target: str
    """TARGET."""
    gpu: str
    """`--gpu`."""
    seq: int | None = None
    """`--seq`."""
    headroom: str = "0%"
    """`--headroom`."""
    step: int = 1
    """`--step`."""
    confirm: bool = True
    """`--confirm`."""
    inputs: tuple[str, ...] = ()
    """`--input`."""
    args: tuple[str, ...] = ()
    """`--arg`."""
    optimizer: str | None = None
    """`--optimizer`."""
    seed: int | None = None
    """`--seed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The answer."""

    target: str
    """What is trained."""
    gpu: str
    """On what."""
    limit_bytes: int
    """What the allocator may reserve."""
    largest: int
    """The largest batch that fits; 0 = none does."""
    knee: int | None
    """The smallest with nine tenths of the best throughput."""
    points: tuple[Point, ...]
    """Batches on the way, the largest last."""
    confirmed: str
    """What running it, and one step more, on a virtual GPU said; empty = not run."""


def run(asked: BatchAsked, environ: Mapping[str, str], *, quiet: bool, no_color: bool, folder: Path) -> Batches:
    """Record, fit, confirm."""
    from dnnmem.cli.commands.job import prepare
    from dnnmem.estimator.cluster import find_cluster
    from dnnmem.estimator.time_model import load

    if asked.step < 1:
        raise UsageError(f"--step is {asked.step}; it is 1 or more")
    cluster = find_cluster(f"{asked.gpu}:1")
    typed: dict[str, int | float | str | None] = {
        "batch": SIZES[0], "seq": asked.seq, "optimizer": asked.optimizer, "seed": asked.seed, "device": "fake",
        "gpu": asked.gpu,
    }  # fmt: skip
    job = prepare(asked.target, typed, environ, folder=folder, inputs=asked.inputs, args=asked.args)
    if job.request is None:
        raise UsageError("a saved trace has one batch; name the model itself")
    model = load(cluster.device)
    device = cluster.device
    limit = int(device.usable_bytes * (1 - headroom(asked.headroom))) - (device.context_bytes or 0)
    with saying(quiet=quiet, no_color=no_color) as say:
        say("recording the step")

        def price(trace: Trace, layers: int | None) -> Point:
            say(f"pricing batch {trace.batch['batch_size']}")
            return point(trace, layers, cluster, model)

        found, at = _largest(job.request, asked.step, limit, price, environ)
        sizes = [n for n in (2**k for k in range(20)) if n < found] + ([found] if found else [])
        points = [at(n) for n in sizes]
        best = knee(points)
        said = ""
        if asked.confirm and found:
            say("running it on a virtual GPU")
            said = _confirmed(job.request, found, asked.step, cluster.device, environ)
    return Batches(
        target=asked.target, gpu=device.name, limit_bytes=limit, largest=found, knee=best.batch if best else None,
        points=tuple(points), confirmed=said,
    )  # fmt: skip


def _largest(
    request: Request,
    step: int,
    limit: int,
    price: Callable[[Trace, int | None], Point],
    environ: Mapping[str, str],
) -> tuple[int, Callable[[int], Point]]:
    """The largest batch within `limit` bytes, and what any batch needs and gives.

    What is found is recorded itself, and if it does not fit then, all is refit with it: where memory is nearly full,
    a kernel that small sizes do not have decides.
    """
    cache = cache_folder(environ)
    first = record_batches(request, SIZES, cache=cache)
    traces, layers = dict(first.traces), first.layers
    known: dict[int, Point] = {}

    def at(size: int) -> Point:
        if size not in known:
            known[size] = price(traces.get(size) or _refit(traces, size), layers)
        return known[size]

    found = largest(lambda size: at(size).reserved_bytes <= limit, step)
    for _ in range(_LOOKS):
        if not found or found in traces:
            break
        again = record_batches(request, (found,), few=layers is not None, cache=cache)
        if again.layers != layers:
            break  # the whole model, where the others have few of its blocks: they do not go together
        traces |= again.traces
        known.clear()
        found = largest(lambda size: at(size).reserved_bytes <= limit, step)
    return found, at


def _refit(traces: Mapping[int, Trace], size: int) -> Trace:
    """From the two sizes nearest to it, or from small ones where large ones have other kernels."""
    near = sorted(traces, key=lambda n: abs(n - size))[:2]
    try:
        return refit([traces[n] for n in near], size)[0]
    except DnnmemError:
        return refit([traces[n] for n in SIZES], size)[0]


def _confirmed(request: Request, size: int, step: int, gpu: Device, environ: Mapping[str, str]) -> str:
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.units import format_bytes
    from dnnmem.profilers.verify import verify

    told = []
    for n in (size, size + step):
        ran = verify(replace(request, batch_size=n, device="auto"), Plan(), gpu, cache=cache_folder(environ))
        reserved = f", {format_bytes(ran.peak_reserved_bytes)} reserved" if ran.peak_reserved_bytes else ""
        told.append(f"batch {n}: {ran.outcome.replace('_', ' ')}{reserved}")
    return "; ".join(told)
