"""Why a plan helps, in one sentence: what it does that the user's own step does not, and what comes of it."""

from __future__ import annotations

from dnnmem.estimator.search import Priced
from dnnmem.estimator.units import format_bytes


def why(priced: Priced, base: Priced | None, budget_bytes: float) -> str:
    """One sentence on `priced` against `base`."""
    if base is None or priced.choice.plan == base.choice.plan:
        return "The step as it is." if base is None or priced.choice.count < 2 else "What a plain run would do."
    theirs = {technique.words for technique in base.choice.techniques}
    done = [t.why for t in priced.choice.techniques if t.why and t.words not in theirs]
    if not done:
        micro, before = priced.choice.plan.batch.micro_batch, base.choice.plan.batch.micro_batch
        done = [f"takes micro-batches of {micro} for {before}" if micro != before else "does less than the plain run"]
    said = ", and ".join(done)
    return f"It {said}: {_gain(priced, base, budget_bytes)}."


def _gain(priced: Priced, base: Priced, budget_bytes: float) -> str:
    mine, theirs = priced.estimate, base.estimate
    less = (theirs.peak_reserved_bytes or 0) - (mine.peak_reserved_bytes or 0)
    memory = f"{format_bytes(abs(less))} {'less' if less >= 0 else 'more'} memory"
    per = [e.step_seconds / max(e.samples, 1) for e in (theirs, mine)]
    speed = f"{per[0] / per[1]:.2f} times the speed" if per[1] else ""
    name = next((t.words for t in base.choice.techniques if t.name and t.name != "accumulation"), "the plain step")
    verdict = ", which does not fit" if (theirs.peak_reserved_bytes or 0) > budget_bytes else ""
    return f"{memory} and {speed} of {name}{verdict}"
