"""What types a step computes in, which changes its rounding: searched only if allowed."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 25

_TYPES = {
    "tf32": "matrix products in TF32",
    "bf16_amp": "autocast to bfloat16",
    "fp16_amp": "autocast to float16 with scaled losses",
    "bfloat16": "parameters, gradients and states in bfloat16",
}


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """As recorded, or in a narrower type."""
    del scope, plan
    return [Technique(name="")] + [
        Technique(
            name=name, settings=(f"precision.compute={name}",), words=words, why=f"computes with {words}", alters=words
        )
        for name, words in _TYPES.items()
    ]
