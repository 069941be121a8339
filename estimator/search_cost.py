"""What plans of one search cost, ever more exactly: a bound at once, runs of ops, then op by op; shared work is kept.

core    a micro-batch's step after the passes of the model (precision, optimizer, remat): one for many plans
guess   of the core that keeps everything: what must be computed again takes so much more
bound   of a core and where its states lie: no plan of it is faster, or smaller
runs    all passes on the core in runs (`coarsen`): the step's seconds, and no more memory than it really takes
exact   all passes op by op: the estimate that is told
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.coarsen import Runs, live_peak
from dnnmem.estimator.collector import collector_paused
from dnnmem.estimator.errors import InfeasibleError, UnsupportedError
from dnnmem.estimator.estimate import Estimate, price
from dnnmem.estimator.host_link import copy_bytes_per_s
from dnnmem.estimator.local_step import LocalStep, step_of
from dnnmem.estimator.passes import rewrite, rewrite_chunks, rewrite_model, rewrite_rank
from dnnmem.estimator.plan import Loss, Plan, Remat
from dnnmem.estimator.planners.chain import Chain, chain_of
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.repeat import repeat, repeated_flops
from dnnmem.estimator.replay import free_bytes, replay_trace
from dnnmem.estimator.search_again import CERTAIN, again_by_runs
from dnnmem.estimator.search_core import (
    ALL_PARTS,
    EVENLY,
    STATES,
    Core,
    Cost,
    Rates,
    check_host,
    held_bytes,
    host_update_seconds,
    parts_of,
    run_seconds,
    saved_by_blocks,
    sent_bytes,
    whole_runs,
    with_costs,
)
from dnnmem.estimator.search_cores import Maker
from dnnmem.estimator.search_drawn import (
    CHUNKS_MARGIN,
    DRAWN,
    RUNS_MARGIN,
    Drawn,
    drawn_by_ops,
    drawn_by_runs,
    waits_margin,
)
from dnnmem.estimator.search_families import Families
from dnnmem.estimator.search_remat import planned_remat
from dnnmem.estimator.search_stages import (
    chunks_in,
    chunks_in_runs,
    least_bytes,
    least_seconds,
    least_states,
    others_bytes,
    spread_of,
    stages_by_runs,
)
from dnnmem.estimator.search_traffic import least_traffic
from dnnmem.estimator.segments import blocks_again
from dnnmem.estimator.stage_memory import StageMemory
from dnnmem.estimator.step_time import time_step
from dnnmem.estimator.time_model import TimeModel
from dnnmem.estimator.trace import Kind, Trace
from dnnmem.estimator.worst_rank import worst_rank

_LASTING = STATES | {Kind.COMM}
WHOLE = ("every", "segments", "ops")
"""Policies that count blocks over the model, which has to be whole then."""


@dataclass(slots=True, kw_only=True, eq=False)
class Costs:
    """Prices plans of one step, recorded at several micro-batches, on one cluster."""

    recorded: Recorded
    """The step."""
    cluster: Cluster
    """The machine."""
    model: TimeModel
    """Its rates."""
    cores: dict[object, Core] = field(default_factory=dict)
    """By what decides them."""
    plans: dict[object, Remat | None] = field(default_factory=dict)
    """What `planned` found; None = nothing fits."""
    bounds: dict[Plan, Cost] = field(default_factory=dict)
    """What `bound` found, of plans that compute nothing again."""
    priced: dict[Plan, Cost] = field(default_factory=dict)
    """What `by_runs` found."""
    lasting: dict[Plan, int] = field(default_factory=dict)
    """Its peak without what blocks save for their backward passes."""
    live: dict[Plan, int] = field(default_factory=dict)
    """What is allocated at its peak, by runs."""
    by_few: dict[Plan, Drawn] = field(default_factory=dict)
    """What `drawn` found."""
    runs: Runs = field(default_factory=Runs)
    """Costs of runs."""
    families: Families = field(default_factory=Families)
    """What plans hold that differ in little."""
    held: tuple[Plan, StageMemory, LocalStep] | None = None
    """The last plan that fits of those that `reserved_bytes` was asked for, what it holds, and its step."""
    maker: Maker = field(init=False)
    """Makes cores."""

    def __post_init__(self) -> None:
        """Rates are shared with what makes cores."""
        self.maker = Maker(recorded=self.recorded, rates=self.rates)

    @property
    def rates(self) -> Rates:
        """What prices steps in runs."""
        return Rates(cluster=self.cluster, model=self.model, runs=self.runs)

    def guess(self, plan: Plan, budget_bytes: float = math.inf, kept_bytes: int = 0) -> Cost:
        """A bound without a core of its own: the plan that keeps everything, and what must be computed again.

        Args: `budget_bytes` is what a rematerialization is to be planned for; infinite = the plan says which.
        `kept_bytes`: what keeping everything needs, if more is known of it than a bound.
        """
        plain = replace(plan, remat=Remat())
        if plain not in self.bounds:
            self.bounds[plain] = self.bound(plain)
        kept, resting = self.bounds[plain], self.resting_bytes(plain)
        kept = replace(kept, peak_bytes=max(kept.peak_bytes, kept_bytes))
        if self.recorded.layers is None:  # blocks may differ
            return replace(kept, peak_bytes=resting)
        again, stages = blocks_again(plan.remat, self.recorded.layers), plan.mesh.pp
        each = CERTAIN * self._seconds_again(plain) / self.recorded.layers * plan.batch.accumulation
        if stages > 1:  # every stage has as many blocks at least
            return Cost(seconds=kept.seconds + again // stages * each, peak_bytes=resting if again else kept.peak_bytes)
        saved = self._most_saved(plain)
        if kept.peak_bytes > budget_bytes:
            again = math.ceil((kept.peak_bytes - budget_bytes) / saved)
        return Cost(
            seconds=kept.seconds + again * each,
            peak_bytes=int(max(resting, kept.peak_bytes - again * saved if again else 0)),
        )

    def _seconds_again(self, plain: Plan) -> float:
        """What computing every block again takes."""
        try:
            full = self.core(replace(plain, remat=Remat(policy="full")))
        except UnsupportedError:
            return 0.0
        return max(full.micro_seconds - self.core(plain).micro_seconds, 0.0)

    def _most_saved(self, plain: Plan) -> float:
        """Bytes that no block saves more than."""
        return saved_by_blocks(self.core(plain), self.runs)[1] / CERTAIN or math.inf

    def chain(self, plan: Plan) -> Chain:
        """The plan's core in stages. Raises `UnsupportedError` for a model that is no chain of blocks."""
        core = self.core(plan)
        if core.chain is None:
            runs = whole_runs(core)
            core.chain = chain_of(runs, run_seconds(runs, self.runs))
        return core.chain

    def bound(self, plan: Plan) -> Cost:
        """No less than this."""
        if self._is_apart(plan):
            return self.guess(plan)
        core, parts = self.core(plan), parts_of(plan)
        check_host(core, plan, self.cluster)
        update = host_update_seconds(core, self.cluster) if plan.offload.optimizer else core.update_seconds
        others = 0 if plan.offload.activations != "none" or plan.mesh.pp > 1 else core.others_bytes
        sent = least_traffic(core, plan, self.rates)
        seconds = max(self.passes_seconds(core, plan), sent.beside) + sent.after + self.model.iteration_seconds
        seconds += update / (max(parts.values()) * plan.mesh.pp)
        if plan.offload.activations != "none":  # what is sent last is fetched first: all is sent before
            copies = 2 * sent_bytes(core, plan) * plan.batch.accumulation
            seconds = max(seconds, DRAWN * copies / copy_bytes_per_s(self.cluster, self.model))
        peak = self.resting_bytes(plan) + others
        if plan.mesh.pp > 1:
            saved = saved_by_blocks(core, self.runs)[0]
            peak = max(peak, least_bytes(spread_of(core, plan, self.rates), saved, plan, parts))
        return Cost(seconds=seconds, peak_bytes=peak)

    def passes_seconds(self, core: Core, plan: Plan) -> float:
        """Of forward and backward passes, at least."""
        if plan.mesh.world_size == plan.mesh.data_ranks:
            return core.micro_seconds * plan.batch.accumulation
        return least_seconds(spread_of(core, plan, self.rates), plan)

    def _is_apart(self, plan: Plan) -> bool:
        """Whether blocks that are alike are not all treated alike: its core would be as long as the model."""
        return plan.remat.policy in WHOLE and self.recorded.layers is not None

    def resting_bytes(self, plan: Plan) -> int:
        """What lives between steps, at least; of a pipeline, when the last micro-batch is over."""
        return held_bytes(self.core(plan), plan)

    @collector_paused()
    def by_runs(self, plan: Plan) -> Cost:
        """The same by runs of ops; raises what passes raise."""
        found = self.priced.get(plan)
        if found is None:
            found = self.priced[plan] = self._by_runs(plan)
        if not self._is_apart(plan):
            self.families.note(plan, self.core(plan), found.peak_bytes)
        return found

    def _by_runs(self, plan: Plan) -> Cost:
        if plan.offload.parameters:  # gradients leave as they are made, where they else would leave at the end
            bound, drawn = self.bound(plan), self._drawn_out(plan)
            return Cost(
                seconds=max(bound.seconds, drawn.seconds), peak_bytes=max(self.resting_bytes(plan), drawn.peak_bytes)
            )
        if plan.offload.activations != "none":  # copied as ops make them, within runs; no step is faster for copies
            without = replace(plan, offload=replace(plan.offload, activations="none"))
            bound, least, drawn = self.bound(plan), self.keeping(without), self._drawn_out(plan)
            seconds = max(bound.seconds, least.seconds, drawn.seconds)
            return Cost(seconds=seconds, peak_bytes=max(least.lasting_bytes, drawn.peak_bytes))
        if self._is_apart(plan):
            bound, again = self.bound(plan), self._again(plan, replace(plan, remat=Remat()))
            return Cost(seconds=max(bound.seconds, again.seconds), peak_bytes=max(bound.peak_bytes, again.peak_bytes))
        core = self.core(plan)
        if plan.mesh.pp > 1:
            bound = self.bound(plan)
            found = stages_by_runs(chunks_in_runs(core, plan), core, plan, self.rates)
            return Cost(
                seconds=max(bound.seconds, found.seconds * waits_margin(plan)),
                peak_bytes=max(bound.peak_bytes, int(found.peak_bytes * RUNS_MARGIN)),
            )
        runs = whole_runs(core)
        local = rewrite_rank(runs, plan, self.cluster)
        margin = RUNS_MARGIN if plan.loss == Loss() else CHUNKS_MARGIN
        self.lasting[plan] = int(live_peak(local, _LASTING) * margin)
        self.live[plan] = live_peak(local)
        step = with_costs(step_of([local], runs, plan, self.cluster, 0), self.runs, self.model)
        seconds = time_step(step, self.model).seconds * waits_margin(plan)
        return Cost(seconds=seconds, peak_bytes=int(self.live[plan] * margin))

    def _drawn_out(self, plan: Plan) -> Drawn:
        """From as many blocks as the record has and from one more, op by op, to all of them."""
        some_blocks = plan.offload.activations not in {"none", *EVENLY} or plan.offload.resident
        return Drawn() if some_blocks or self._is_apart(plan) else drawn_by_ops(self.core(plan), plan, self.rates)

    @collector_paused()
    def drawn(self, plan: Plan) -> Drawn:
        """The same by runs; nothing for what is drawn out anyway, and of a pipeline, bytes."""
        offload = plan.offload
        if plan.mesh.pp > 1:
            return Drawn(peak_bytes=self._stages_bytes(plan))
        if offload.activations != "none" or offload.parameters or self._is_apart(plan):
            return Drawn()
        if plan not in self.by_few:
            self.by_few[plan] = drawn_by_runs(self.core(plan), plan, self.rates)
        return self.by_few[plan]

    def _stages_bytes(self, plan: Plan) -> int:
        """What some rank of a pipeline holds: the states of its blocks, and all else, which few plans differ in."""
        alike = replace(plan, optimizer=replace(plan.optimizer, kernel=None))
        core, chunks = self.core(alike), chunks_in_runs(self.core(alike), alike)
        others = others_bytes(chunks, core, alike, self.rates)
        return int((others + least_states(spread_of(core, alike, self.rates), alike, parts_of(alike))) * RUNS_MARGIN)

    def keeping(self, plan: Plan) -> Drawn:
        """What a plan that keeps everything costs: `drawn`, or where all blocks were recorded, by runs of them."""
        if self.recorded.layers is not None:
            return self.drawn(plan)
        cost = self.by_runs(plan)
        return Drawn(seconds=cost.seconds, peak_bytes=cost.peak_bytes, lasting_bytes=self.lasting.get(plan, 0))

    def _again(self, plan: Plan, plain: Plan) -> Cost:
        """By runs that are computed again whole."""
        try:
            again = self._seconds_again(plain) / (self.recorded.layers or 1)
            return again_by_runs(whole_runs(self.core(plain)), self.chain(plain), plan, again, self.rates)
        except UnsupportedError:  # op by op it may do
            return Cost(seconds=self.by_runs(plain).seconds, peak_bytes=0)

    @collector_paused()
    def exact(self, plan: Plan) -> Estimate:
        """The price, op by op; raises what passes raise."""
        known = self.held[1] if self.held and self.held[0] == plan else None
        return price(self.step(plan), self.model, known=known)

    @collector_paused()
    def reserved_bytes(self, plan: Plan) -> int:
        """What the allocator would reserve, op by op, if the GPU were large enough; raises what passes raise."""
        step = self.step(plan)
        worst = worst_rank(step, play=replay_trace)
        fits = worst.held.peak_reserved_bytes <= free_bytes(self.cluster.device)
        self.held = (plan, worst, step) if fits else None
        return worst.held.peak_reserved_bytes

    def _local(self, plan: Plan, recorded: Trace) -> list[Trace]:
        """A rank's step, op by op; or those of all chunks of a pipeline."""
        if plan.mesh.pp == 1:
            return [rewrite_rank(self._ops(plan, recorded), plan, self.cluster)]
        return rewrite_chunks(chunks_in(self.core(plan), plan), plan, self.cluster)

    def step(self, plan: Plan) -> LocalStep:
        """The planned step, op by op."""
        if self.held and self.held[0] == plan:
            return self.held[2]
        recorded, layers = self.recorded.trace(self.micro_batch(plan), plan.precision.compute), self.recorded.layers
        flops = repeated_flops(recorded, layers) if layers else sum(op.flops for op in recorded.ops)
        step = step_of(self._local(plan, recorded), recorded, plan, self.cluster, flops)
        return replace(step, of_rank=partial(rewrite, recorded, plan, self.cluster, layers))

    def _ops(self, plan: Plan, recorded: Trace) -> Trace:
        """Of the plan's core, whole."""
        if self._is_apart(plan):
            return rewrite_model(self.maker.whole(recorded), plan, self.cluster)
        core = self.core(plan)
        if core.whole is None:
            core.whole = core.trace if core.layers is None else repeat(core.trace, core.layers)
        return core.whole

    @collector_paused()
    def planned(self, plan: Plan, budget_bytes: float) -> Plan:
        """`plan` with the rematerialization that Rotor finds for what sharding and states leave of the budget.

        Raises `InfeasibleError` where none fits, `UnsupportedError` for a model that is no chain of blocks.
        """
        key = (plan, budget_bytes)
        if key not in self.plans:
            self.plans[key] = planned_remat(self, plan, budget_bytes)
        found = self.plans[key]
        if found is None:
            raise InfeasibleError("no rematerialization fits", needed_bytes=round(budget_bytes))
        return replace(plan, remat=found)

    def micro_batch(self, plan: Plan) -> int:
        """Of a plan; the only one there is, where it says none."""
        return plan.batch.micro_batch or self.recorded.own_batch

    def core(self, plan: Plan) -> Core:
        """That of a plan."""
        key: tuple[object, ...] = (
            self.micro_batch(plan), plan.mesh.tp, plan.mesh.cp, plan.mesh.ep, plan.precision, plan.loss, plan.tensor,
            plan.context, plan.experts, plan.optimizer, plan.remat, plan.compression,
        )  # fmt: skip
        if plan.precision != Plan().precision:  # whose pass leaves parameters at rest to them
            key = (*key, plan.sharding.strategy in ALL_PARTS)
        if key not in self.cores:
            self.cores[key] = self.maker.core(plan)
        return self.cores[key]
