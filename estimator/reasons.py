"""Why a plan helps, in one sentence: what it does that the user's own step does not, and what comes of it."""

from __future__ import annotations

from dnnmem.estimator.estimate import Estimate
from dnnmem.estimator.ranking import TIE_WINDOW
from dnnmem.estimator.search import Priced
from dnnmem.estimator.units import format_bytes

_TIMES = 1.95
"""From here on people say twice, not 95 % faster."""


def why(priced: Priced, base: Priced | None, budget_bytes: float) -> str:
    """One sentence on `priced` against `base`: what comes of it, and what it does for that."""
    if base is None or priced.choice.plan == base.choice.plan:
        return "The step as it is." if base is None or priced.choice.count < 2 else "What a plain run would do."
    theirs = {technique.words for technique in base.choice.techniques}
    done = [t.why for t in priced.choice.techniques if t.why and t.words not in theirs]
    if not done:
        micro, before = priced.choice.plan.batch.micro_batch, base.choice.plan.batch.micro_batch
        done = [f"takes micro-batches of {micro} for {before}" if micro != before else "does less than the plain run"]
    verdict = ", which does not fit" if (base.estimate.peak_reserved_bytes or 0) > budget_bytes else ""
    gain = f"{speed_words(priced.estimate, base.estimate)} {base_words(base)}{verdict}"
    return f"{gain[0].upper()}{gain[1:]}; {memory_words(priced.estimate, base.estimate)}. It {', and '.join(done)}."


def base_words(base: Priced) -> str:
    """The user's step in a word or two."""
    return next((t.words for t in base.choice.techniques if t.name and t.name != "accumulation"), "the plain step")


def speed_words(mine: Estimate, theirs: Estimate) -> str:
    """How fast `mine` is, before the name of the other; what the time model hardly sees is no difference."""
    seconds, others = (e.step_seconds / max(e.samples, 1) for e in (mine, theirs))
    ratio = others / seconds if seconds else 1.0
    if abs(ratio - 1) <= TIE_WINDOW:
        return "as fast as"
    if ratio >= _TIMES:
        return f"{ratio:.1f} times as fast as"
    return f"{100 * abs(ratio - 1):.0f} % {'faster' if ratio > 1 else 'slower'} than"


def memory_words(mine: Estimate, theirs: Estimate) -> str:
    """How much less memory `mine` reserves."""
    less = (theirs.peak_reserved_bytes or 0) - (mine.peak_reserved_bytes or 0)
    if not less:
        return "as much memory"
    return f"{format_bytes(abs(less))} {'less' if less > 0 else 'more'} memory"
