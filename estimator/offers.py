"""What is off because it changes training, and what it would give: priced once, on the best plan that was found.

plan 1, fp32, 216 ms --bf16 under autocast--> 98 ms     2.2 times as fast: told in a line, and how to allow it
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.plan import Precision
from dnnmem.estimator.reasons import memory_words, speed_words
from dnnmem.estimator.search import Priced
from dnnmem.estimator.search_cost import Costs

if TYPE_CHECKING:
    from dnnmem.estimator.recommend import Wanted

_WORTH = 1.05
"""Below this gain in speed it is not worth a line."""
_FIELD = "precision"
_COMPUTE = "bf16_amp"


def precision_words(costs: Costs, first: Priced, wanted: Wanted) -> str:
    """A sentence on the best plan under autocast to bfloat16; empty if that may be searched anyway, or gains little."""
    named = wanted.allow | wanted.only | wanted.without
    if _FIELD in named or _COMPUTE in named or first.choice.plan.precision != Precision():
        return ""
    try:
        narrow = costs.exact(replace(first.choice.plan, precision=Precision(compute=_COMPUTE)))
    except DnnmemError:
        return ""
    if first.estimate.step_seconds < _WORTH * narrow.step_seconds:
        return ""
    return (
        f"Autocast to bfloat16 would make plan 1 {speed_words(narrow, first.estimate)} it is, with "
        f"{memory_words(narrow, first.estimate)}. It changes the rounding of training, so it is off: "
        f"--allow {_FIELD} searches it too."
    )
