"""Another optimizer, which is another training: searched only if allowed."""

from __future__ import annotations

from dnnmem.estimator.plan import Plan
from dnnmem.estimator.techniques import Scope, Technique

ORDER = 50

_OTHERS = {
    "adamw": "AdamW in the place of the optimizer",
    "adamw8bit": "AdamW with states of 8 bits",
    "adafactor": "Adafactor, whose states are rows and columns",
    "sgd": "SGD, which has no states",
}


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """As recorded, or another."""
    rows = [Technique(name="")]
    if "optimizer" not in scope.fields or plan.optimizer.kernel is not None:
        return rows
    return rows + [
        Technique(name=name, settings=(f"optimizer.name={name}",), words=name, why=f"uses {words}", alters=words)
        for name, words in _OTHERS.items()
    ]
