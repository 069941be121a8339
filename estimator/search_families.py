"""What a plan holds at least because another one, which splits its states further, was found to hold so much.

    FSDP2 over 2048 ranks   153 GiB by runs    ->    HSDP, 256 GPUs x 8: no less, but for padding: not priced

More ranks that split never hold more, nor does an update in one kernel: of plans that differ in nothing else, the one
that splits most is priced first, as it is no slower either, and where it does not fit, none of them does.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from dnnmem.estimator.context_ranks import from_context
from dnnmem.estimator.passes.fsdp_parts import part_of
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.search_core import Core
from dnnmem.estimator.trace import Kind

_ROUNDED = 0.98
"""Parts are rounded up, and so are buffers: more than that is left in the spaces that tests price whole."""


@dataclass(slots=True, kw_only=True, eq=False)
class Families:
    """Peaks by runs of what was priced, by all that plans have beside ranks that split states."""

    peaks: dict[Plan, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    """Bytes by the ranks that split states, padding left out."""

    def note(self, plan: Plan, core: Core, peak_bytes: int) -> None:
        """Remember what `plan`, which has this core, holds at least."""
        ranks = _ranks(plan)
        if plan.splits_parameters and ranks not in self.peaks[_family(plan)]:
            self.peaks[_family(plan)][ranks] = peak_bytes * _unpadded(core, ranks) * _ROUNDED

    def least_bytes(self, plan: Plan) -> float:
        """What `plan` holds at least by what is known of others; 0 where nothing is."""
        if not plan.splits_parameters:
            return 0.0
        fused = replace(plan, optimizer=replace(plan.optimizer, kernel="fused"))
        known = (self.peaks.get(_family(other), {}) for other in (plan, fused))
        return max((peak for peaks in known for ranks, peak in peaks.items() if ranks >= _ranks(plan)), default=0.0)


def _ranks(plan: Plan) -> int:
    return from_context(plan).mesh.dp_shard


def _family(plan: Plan) -> Plan:
    return replace(plan, mesh=replace(plan.mesh, dp_shard=1, dp_replicate=1))


def _unpadded(core: Core, ranks: int) -> float:
    """The share of gathered parameters that is no padding."""
    whole = [s for s in core.few_runs.storages.values() if s.kind is Kind.PARAM]
    return sum(s.nbytes for s in whole) / max(sum(part_of(s, ranks).nbytes * ranks for s in whole), 1)
