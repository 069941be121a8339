"""What `recommend` found: plans ranked by their prices, as data; no formatting.

>>> Verified(device="virtual", outcome="ran", peak_allocated_bytes=98, peak_reserved_bytes=102).difference(100)
0.02
"""

from __future__ import annotations

from dataclasses import dataclass

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.estimate import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRank:
    """One rank of a plan that was applied and run."""

    rank: int
    """From 0."""
    predicted_bytes: int | None = None
    """What its allocator was to reserve; None where only the rank that reserves most is predicted."""
    peak_allocated_bytes: int | None = None
    """As in `Verified`."""
    peak_reserved_bytes: int | None = None
    """The same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A plan that was applied and run."""

    device: str
    """`virtual` or `cuda`."""
    outcome: str
    """`ran`, `out_of_memory`, `failed` or `timed_out`."""
    peak_allocated_bytes: int | None = None
    """Of the last step's live blocks, on the rank that reserved most of those that ran; None if none got there."""
    peak_reserved_bytes: int | None = None
    """Of the allocator's segments, the same."""
    step_seconds: float | None = None
    """Measured; None on a virtual GPU."""
    message: str = ""
    """What a run that failed said."""
    gradient_error: float | None = None
    """Of a plan that loses something: how far the gradients of a step on the CPU are off, over their length; None =
    nothing is lost, or it was not measured."""
    ranks: tuple[VerifiedRank, ...] = ()
    """Those that ran, one by one, on virtual GPUs."""
    others: str = ""
    """Why no more of them did; empty where all did, or there is one."""

    def difference(self, predicted_bytes: int | None) -> float | None:
        """The reserved peak over what was predicted, less 1; None if either is unknown."""
        if self.peak_reserved_bytes is None or not predicted_bytes:
            return None
        return round(self.peak_reserved_bytes / predicted_bytes - 1, 12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan in its place."""

    rank: int
    """From 1, best first."""
    estimate: Estimate
    """Its price; the plan is in it."""
    techniques: tuple[str, ...]
    """What it does beyond the plain step, in the field's words: `FSDP2 over 8 GPUs`, `recompute every block`."""
    changes: tuple[str, ...]
    """What is different from the baseline, as `--set` would say it."""
    why: str
    """In one sentence, why it helps against the baseline."""
    alters_training: tuple[str, ...] = ()
    """What of it changes the mathematics of training; empty = same losses and gradients."""
    tied_with: tuple[int, ...] = ()
    """Ranks whose time the model cannot tell apart from this one's."""
    pareto: bool = False
    """No other candidate is better in memory, speed and cost at once."""
    verified: Verified | None = None
    """What it needed when it ran; None = not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The ranked candidates and how they were found."""

    target: str
    """What is trained."""
    cluster: Cluster
    """On what."""
    objective: str
    """`throughput`, `cost`, `memory` or `time-to-train`."""
    headroom: float
    """Share of the GPU that is to stay free."""
    global_batch: int | None
    """Samples of an optimizer step; None = as many as the plan has."""
    considered: int
    """Plans of the space."""
    priced: int
    """Of them priced; the others were cut off by a bound."""
    search_seconds: float
    """Wall time of the search, recording left out."""
    baseline: Candidate | None
    """The step as the user has it, rank 0; None if it cannot be priced."""
    candidates: tuple[Candidate, ...]
    """Best first; if nothing fits, nearest first."""
    nothing_fits: str = ""
    """How close the nearest plan is and the cheapest change that would make it fit; empty = something fits."""
    notes: tuple[str, ...] = ()
    """What was assumed."""
