"""Published rows, recorded and predicted: each distinct step is recorded once, by a child, and kept on disk.

    cases --distinct keys--> child --> CACHE/validate/<hash>.trace.json.gz --blocks repeated, plan--> predictions

A recording is kept under what decides it: target and its file, arguments, batch, sequence, GPU, and the versions of
dnnmem, torch and the model's library. `benchmarks/` fits the time model on the same cases and traces.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import dnnmem
from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.errors import DnnmemError, UsageError
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.trace_file import load_trace
from dnnmem.estimator.validation.case import METRICS, Case, Key
from dnnmem.estimator.validation.score import Prediction
from dnnmem.estimator.validation.sources import cases
from dnnmem.profilers.request import Request, parse_args
from dnnmem.profilers.run_many import run_many

if TYPE_CHECKING:
    from dnnmem.estimator.estimate import Estimate

__all__ = ["Progress", "cases", "predict", "record", "traces"]

Progress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is done, and of how much."""
_LIBRARIES = ("torch", "torchvision", "timm", "transformers")


class _Step(NamedTuple):
    """A recorded step, of few blocks where the model has many."""

    key: Key
    trace: Trace


def traces(found: Iterable[Case], progress: Progress = lambda *_: None) -> dict[Key, Trace]:
    """The recorded step of each case, by `Case.key`; what cannot be recorded is left out."""
    files = record(found, progress)
    return {key: load_trace(file)[0] for key, file in files.items() if isinstance(file, Path)}


def record(
    found: Iterable[Case], progress: Progress = lambda *_: None, *, fresh: bool = False
) -> dict[Key, Path | DnnmemError]:
    """The saved step of each case that can be predicted, by `Case.key`, or what went wrong with it.

    `fresh` records again what is kept. Raises `UnsupportedError` where there is no folder to keep anything in.
    """
    folder = cache_folder(os.environ) / "validate"
    keys = list(dict.fromkeys(case.key for case in found if not case.reason))
    answers = {key: _place(key, folder) for key in keys}
    missing = [key for key, file in answers.items() if isinstance(file, Path) and (fresh or not file.exists())]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="dnnmem-") as name:
            progress("recording", 0, len(missing))
            answered = run_many([_request(key) for key in missing], Path(name), cache=cache_folder(os.environ))
            for done, (i, answer) in enumerate(answered, 1):
                answers[missing[i]] = _keep(answer, answers[missing[i]])
                progress("recording", done, len(missing))
    return answers


def predict(
    found: Sequence[Case], recorded: Mapping[Key, Path | DnnmemError], progress: Progress = lambda *_: None
) -> list[Prediction]:
    """What becomes of each measurement of each case, in their order."""
    results: dict[int, list[Prediction]] = {}
    order = sorted(range(len(found)), key=lambda i: (found[i].reason != "", repr(found[i].key), found[i].layers or 0))
    last: _Step | None = None
    for done, i in enumerate(order, 1):
        case = found[i]
        try:
            if case.reason:
                results[i] = _missed(case, case.reason)
            else:
                last = _step(case, recorded[case.key], last)
                results[i] = _predict(case, last.trace)
        except DnnmemError as error:
            results[i] = _missed(case, error.message)
        progress("predicting", done, len(order))
    return [prediction for i in range(len(found)) for prediction in results[i]]


def _step(case: Case, recorded: Path | DnnmemError, last: _Step | None) -> _Step:
    if last is not None and last.key == case.key:
        return last
    if isinstance(recorded, DnnmemError):
        raise recorded
    return _Step(case.key, load_trace(recorded)[0])


def _predict(case: Case, trace: Trace) -> list[Prediction]:
    metrics = [metric for metric in METRICS if case.measured(metric) is not None]
    if case.out_of_memory:
        return _missed(case, _verdict(estimated(case, trace, memory=True)))
    if not metrics:
        return _missed(case, "nothing that is compared was measured")
    found = estimated(case, trace, memory=metrics != ["step_seconds"])
    values: dict[str, float | None] = {metric: getattr(found, metric) for metric in METRICS}
    return [
        Prediction(
            case=case,
            metric=metric,
            measured=case.measured(metric),
            predicted=values[metric],
            interval=found.interval_seconds if metric == "step_seconds" else None,
            reason="" if values[metric] is not None else "the memory of this plan is not predicted yet",
        )
        for metric in metrics
    ]


def _verdict(found: Estimate) -> str:
    """Of a run that ended out of memory."""
    gib = (found.peak_reserved_bytes or 0) / 2**30
    called = "so is the prediction" if found.fits is False else "the prediction says that it fits"
    return f"the run ended out of memory, and {called}: {gib:.1f} GiB"


def estimated(case: Case, trace: Trace, *, memory: bool) -> Estimate:
    """The estimate of a case; without its bytes if `memory` is False. Raises a `DnnmemError` for what has none."""
    from dnnmem.estimator.allocator_settings import parse_settings
    from dnnmem.estimator.cluster import find_cluster
    from dnnmem.estimator.estimate import price
    from dnnmem.estimator.local_step import local_step
    from dnnmem.estimator.time_model import at_site, load

    cluster = find_cluster(case.cluster)
    step = local_step(trace, case.plan, cluster, case.layers)
    settings = parse_settings(case.allocator) if case.allocator else None
    model = at_site(load(cluster.device, site=case.source), case.rates)
    return price(step, model, memory=memory, settings=settings)


def _missed(case: Case, reason: str) -> list[Prediction]:
    metrics = [metric for metric in METRICS if case.measured(metric) is not None] or [""]
    return [
        Prediction(
            case=case, metric=name, measured=case.measured(name) if name else None, predicted=None, reason=reason
        )
        for name in metrics
    ]


def _keep(answer: Path | DnnmemError, to: Path | DnnmemError) -> Path | DnnmemError:
    if isinstance(answer, DnnmemError) or isinstance(to, DnnmemError):
        return answer
    partial = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    partial.write_bytes(answer.read_bytes())  # the two may be on different disks
    partial.replace(to)
    answer.unlink()
    return to


def _request(key: Key) -> Request:
    return Request(
        target=_target(key.target),
        args=parse_args(key.args),
        batch_size=key.batch,
        seq_len=key.seq,
        optimizer=key.optimizer,
        device="fake",
        gpu=key.gpu,
    )


def _target(target: str) -> str:
    """The target as the child can find it: a file here, or beside the package in a checkout."""
    if not target.endswith(".py"):
        return target
    for folder in (Path.cwd(), Path(__file__).parents[1]):
        if (folder / target).is_file():
            return str(folder / target)
    raise UsageError(
        f"{target} is neither here nor beside the installed package; it makes the models of published rows",
        hint="run dnnmem validate in a checkout of dnnmem",
    )


def _place(key: Key, folder: Path) -> Path | DnnmemError:
    """Where a recording is kept."""
    try:
        target = _target(key.target)
    except UsageError as error:
        return error
    content = hashlib.sha256(Path(target).read_bytes()).hexdigest() if target.endswith(".py") else ""
    versions = {"dnnmem": dnnmem.__version__, **{name: _version(name) for name in _LIBRARIES}}
    digest = hashlib.sha256(json.dumps([*key, content, versions]).encode()).hexdigest()
    return folder / f"{digest[:32]}.trace.json.gz"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
