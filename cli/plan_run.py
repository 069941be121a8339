"""From the words of `dnnmem plan` to its answer: a step is recorded, and planners are asked how it fits a budget.

PlanAsked --child--> Trace --problem--> one answer a planner --> the chosen one, its step in blocks --> Planned
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import DnnmemError, InfeasibleError, UnsupportedError, UsageError
from dnnmem.estimator.planners.solve import AUTO, Planner, Solution, planners, solve_problem
from dnnmem.estimator.units import parse_bytes

if TYPE_CHECKING:
    from dnnmem.cli.commands.job import Job
    from dnnmem.cli.render.schedule_grid import Step
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.planners.problem import Cost, Problem
    from dnnmem.estimator.report import Verified
    from dnnmem.estimator.trace import Trace

_PLANNED = ("remat.", "offload.activations", "offload.every", "offload.blocks", "offload.min_bytes")
"""Settings that the planners make."""
_WORTH = 0.01
"""Share of a step that another planner's answer must be faster by to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAsked:
    """The command line; as `dnnmem plan --help` says."""

    target: str
    """TARGET."""
    budget: str | None = None
    """`--budget`."""
    planner: str = AUTO
    """`--planner`."""
    gpu: str | None = None
    """`--gpu`."""
    batch: int | None = None
    """`--batch`."""
    seq: int | None = None
    """`--seq`."""
    settings: tuple[str, ...] = ()
    """`--set`."""
    compare: bool = True
    """`--compare`."""
    time_limit: float = 20.0
    """`--time-limit`."""
    verify: bool = False
    """`--verify`."""
    everything: bool = False
    """`--all`."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a planner said."""

    planner: Planner
    """Who."""
    solution: Solution | None = None
    """What it found; None = nothing."""
    error: DnnmemError | None = None
    """Why it found nothing."""

    @property
    def outcome(self) -> str:
        """`fits`, `does_not_fit`, `does_not_apply` or `failed`."""
        if self.solution is not None:
            return "fits"
        if isinstance(self.error, InfeasibleError):
            return "does_not_fit"
        return "does_not_apply" if isinstance(self.error, UnsupportedError) else "failed"

    @property
    def needed_bytes(self) -> int | None:
        """The smallest budget that it could keep, where it does not fit; None = not known."""
        return self.error.needed_bytes if isinstance(self.error, InfeasibleError) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The answer."""

    target: str
    """What is trained."""
    batch: Mapping[str, int | str]
    """Of the step."""
    gpu: str
    """On what."""
    budget_bytes: int
    """What PyTorch's allocator may reserve."""
    plain: Cost
    """Of the step as it is."""
    chosen: Solution | None
    """What is done; None = nothing fits."""
    answers: tuple[Answer, ...]
    """Of all planners that were asked; those that fit first, the least extra time first."""
    step: Step | None = None
    """The chosen step, in blocks; None where no plan expresses it."""
    verified: Verified | None = None
    """What the chosen plan needed when it ran; None = not run."""
    error: DnnmemError | None = None
    """Why nothing was chosen."""
    notes: tuple[str, ...] = ()
    """What was assumed, and what would be better."""

    @property
    def least_bytes(self) -> int | None:
        """Where nothing fits, the smallest budget that a plan which can be applied keeps; None = not known."""
        needed = [answer.needed_bytes for answer in self.answers if answer.planner.applied]
        needed += [self.error.needed_bytes] if isinstance(self.error, InfeasibleError) else []
        return min((nbytes for nbytes in needed if nbytes is not None), default=None)


def run(asked: PlanAsked, environ: Mapping[str, str], *, quiet: bool, no_color: bool) -> Planned:
    """Record, ask, choose, verify. Raises `UsageError` for what contradicts itself, and what recording raises."""
    from dnnmem.cli.commands.outputs import choose
    from dnnmem.cli.recommend_run import saying
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.plan_text import change
    from dnnmem.estimator.time_model import load

    choose("--planner", asked.planner, (AUTO, *planners()))
    base = change(Plan(), asked.settings)
    _check_base(asked.settings)
    budget = None if asked.budget is None else _budget(asked.budget)
    if not 0 < asked.time_limit < float("inf"):
        raise UsageError(f"--time-limit is {asked.time_limit:g}; a planner needs more than 0 seconds")
    job, cluster, notes = _where(asked, environ)
    if asked.verify and job.request is None:
        raise UsageError("--verify runs the model itself, and a saved trace has none", hint="name the model")
    if budget is None:
        budget = _whole(cluster)
    trace = _record(job, base.precision.compute, quiet=quiet, no_color=no_color)
    with saying(quiet=quiet, no_color=no_color) as say:
        from dnnmem.estimator.planners.problem import problem_of

        problem = problem_of(
            trace, budget, cluster=cluster, model=load(cluster.device, asked.rates), base=base,
            time_limit_seconds=asked.time_limit,
        )  # fmt: skip
        found = _ask(asked, problem, say)
        found = replace(found, notes=(*notes, *found.notes))
        if asked.verify and found.chosen is not None and found.chosen.plan is not None:
            say("running it on a virtual GPU")
            found = replace(found, verified=_verified(job, found.chosen.plan, cluster, environ))
    return found


def _check_base(settings: Sequence[str]) -> None:
    for setting in settings:
        if setting.strip().startswith(_PLANNED):
            raise UsageError(
                f"--set {setting} is what is planned here",
                hint=f"dnnmem estimate prices a plan of yours: --set {setting}",
            )


def _budget(text: str) -> int:
    found = parse_bytes(text)
    if found <= 0:
        raise UsageError(f"--budget is {text}; it is more than nothing", hint="--budget 22GiB")
    return found


def _whole(cluster: Cluster) -> int:
    """What the GPU leaves to PyTorch's allocator."""
    return cluster.device.usable_bytes - (cluster.device.context_bytes or 0)


def _where(asked: PlanAsked, environ: Mapping[str, str]) -> tuple[Job, Cluster, tuple[str, ...]]:
    """What to record, the GPU to plan for, and what was assumed for that."""
    from dnnmem.cli.commands.job import SAVED, prepare
    from dnnmem.cli.config import own_gpu
    from dnnmem.cli.recommend_run import _own_gpu
    from dnnmem.estimator.cluster import find_cluster
    from dnnmem.estimator.trace_file import load_trace

    saved = asked.target.endswith(SAVED)
    gpu = asked.gpu or own_gpu(Path.cwd())
    if gpu is None and saved:
        gpu = load_trace(Path(asked.target))[0].origin.gpu
    notes = () if gpu else (f"no --gpu was named: the GPU is {_own_gpu()}",)
    gpu = gpu or _own_gpu()
    cluster = find_cluster(f"{gpu}:1")
    typed: dict[str, int | float | str | None] = {
        "batch": asked.batch, "seq": asked.seq, "optimizer": asked.optimizer, "seed": asked.seed,
        "timeout": asked.timeout,
    }  # fmt: skip
    if not saved:
        typed |= {"device": "fake", **({} if cluster.device.vendor == "cpu" else {"gpu": gpu})}
    job = prepare(asked.target, typed, environ, folder=Path.cwd(), inputs=asked.inputs, args=asked.args)
    return job, cluster, notes


def _record(job: Job, compute: str | None, *, quiet: bool, no_color: bool) -> Trace:
    """The whole step, of a record of few of its blocks where these are alike; or as it was saved."""
    from dnnmem.cli.commands.profile import record
    from dnnmem.estimator.repeat import repeat
    from dnnmem.profilers.record_sizes import FEW, of_saved

    def whole(job: Job) -> Trace:
        recorded = of_saved([record(job, quiet=quiet, no_color=no_color)[0]])
        [trace] = recorded.traces.values()
        return trace if recorded.layers is None else repeat(trace, recorded.layers)

    if job.request is None:
        return whole(job)
    request = replace(job.request, compute=compute)
    try:
        return whole(replace(job, request=replace(request, blocks=FEW)))
    except UnsupportedError:
        return whole(replace(job, request=request))


def _ask(asked: PlanAsked, problem: Problem, say: Callable[[str], None]) -> Planned:
    chosen, error = None, None
    say(f"planning: {asked.planner}")
    try:
        chosen = solve_problem(problem, asked.planner)
    except DnnmemError as why:
        error = why
    plain = problem.plain()
    answers: tuple[Answer, ...] = ()
    if asked.compare and plain.peak_bytes > problem.budget_bytes:
        answers = tuple(sorted(_answers(problem, chosen, asked.planner, error, say), key=_order))
    best = next((a.solution for a in answers if a.solution is not None and a.solution.plan is not None), None)
    if chosen is None and asked.planner == AUTO and best is not None:  # it asks those alone that suit
        chosen = best
    return Planned(
        target=problem.recorded.origin.target, batch=problem.recorded.batch, gpu=problem.cluster.device.name,
        budget_bytes=problem.budget_bytes, plain=plain, chosen=chosen, answers=answers,
        error=error if chosen is None else None, notes=_better(chosen, best),
        step=None if chosen is None or chosen.plan is None else _step(problem, chosen.plan, fold=not asked.everything),
    )  # fmt: skip


def _answers(
    problem: Problem, chosen: Solution | None, name: str, error: DnnmemError | None, say: Callable[[str], None]
) -> Iterator[Answer]:
    """Of each planner; who has answered is not asked again."""
    for planner in planners().values():
        if chosen is not None and planner.name == chosen.planner:
            yield Answer(planner=planner, solution=chosen)
            continue
        if error is not None and planner.name == name:
            yield Answer(planner=planner, error=error)
            continue
        say(f"planning: {planner.name}")
        try:
            yield Answer(planner=planner, solution=solve_problem(problem, planner.name))
        except DnnmemError as why:
            yield Answer(planner=planner, error=why)


def _order(answer: Answer) -> tuple[int, float]:
    places = ("fits", "does_not_fit", "does_not_apply", "failed")
    cost = answer.solution.extra_seconds if answer.solution else float(answer.needed_bytes or 0)
    return places.index(answer.outcome), cost


def _better(chosen: Solution | None, best: Solution | None) -> tuple[str, ...]:
    """What another planner found that is worth asking for."""
    if chosen is None or best is None or chosen.cost.seconds - best.cost.seconds < _WORTH * chosen.cost.seconds:
        return ()
    saved = 100 * (1 - best.cost.seconds / chosen.cost.seconds)
    return (f"{best.planner} finds a step that is {saved:.1f} % faster: --planner {best.planner}",)


def _step(problem: Problem, plan: Plan, *, fold: bool) -> Step:
    """The planned step in blocks, and when its ops run."""
    from dnnmem.cli.render.schedule_grid import Step
    from dnnmem.estimator.block_fates import fates, groups
    from dnnmem.estimator.local_step import local_step
    from dnnmem.estimator.step_time import time_ops

    step = local_step(problem.recorded, plan, problem.cluster)
    _, timing = time_ops(step, problem.model)
    seconds = (timing.end - timing.start).tolist()
    found = groups(fates(problem.trace, step.local, seconds), plan.remat.segments, fold=fold)
    return Step(plain=problem.trace, planned=step.local, timing=timing, groups=found)


def _verified(job: Job, plan: Plan, cluster: Cluster, environ: Mapping[str, str]) -> Verified:
    from dnnmem.cli.cache import cache_folder
    from dnnmem.profilers.verify import verify

    assert job.request is not None  # noqa: S101  (for mypy; asked before)
    return verify(replace(job.request, device="auto"), plan, cluster.device, cache=cache_folder(environ))
