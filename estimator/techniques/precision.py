"""What types a step computes in, which changes its rounding: searched only if allowed."""

from __future__ import annotations

from collections.abc import Collection

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 25
FILE = "precision"
"""What `--allow` calls all of them."""

_TYPES = {
    "tf32": "matrix products in TF32",
    "bf16_amp": "autocast to bfloat16",
    "fp16_amp": "autocast to float16 with scaled losses",
    "bfloat16": "parameters, gradients and states in bfloat16",
}


NARROW = ("bf16_amp", "fp16_amp", "bfloat16")
"""Those in which a step has other ops."""


def to_record(allow: Collection[str], only: Collection[str], without: Collection[str]) -> tuple[str, ...]:
    """Narrow types that a search of such a scope has, so that the step is to be recorded in them too."""
    return tuple(
        name
        for name in NARROW
        if {name, FILE} & {*allow, *only} and not {name, FILE} & {*without} and (not only or {name, FILE} & {*only})
    )


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """As recorded, or in another type."""
    copies = ("bf16_amp", "fp16_amp") if plan.mesh.tp > 1 else ()  # of weights, which tensor parallelism does not split
    return [Technique(name="")] + [
        Technique(
            name=name, settings=(f"precision.compute={name}",), words=words, why=f"computes with {words}", alters=words
        )
        for name, words in _TYPES.items()
        if name != scope.computes and name not in copies
    ]
