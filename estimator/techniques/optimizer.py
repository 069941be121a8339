"""Another optimizer, which is another training: searched only if allowed; some only where they are named."""

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
_NAMED = {
    "momentum": "SGD with momentum, which has one state",
    "adamw8bit_bnb": "AdamW with states of 8 bits, of bitsandbytes",
    "lion": "Lion, which has one state and takes a smaller learning rate",
    "muon": "Muon, which has one state of hidden matrices",
    "galore": "GaLore, whose states of hidden matrices have a low rank",
    "lars": "LARS, which has one state, for large batches",
    "lamb": "LAMB, whose states are AdamW's, for large batches",
    "shampoo": "Shampoo, whose states are products of the sides of matrices",
    "soap": "SOAP, whose states are AdamW's and Shampoo's",
}
"""Those that `--allow optimizer` alone does not search: others need less, or their aim is another."""
NAMES = tuple(_NAMED)


def techniques(scope: Scope, plan: Plan) -> list[Technique]:
    """As recorded, or another."""
    rows = [Technique(name="")]
    if "optimizer" not in scope.fields or plan.optimizer.kernel is not None:
        return rows
    named = {name: words for name, words in _NAMED.items() if name in scope.allow | scope.only}
    return rows + [
        Technique(name=name, settings=(f"optimizer.name={name}",), words=name, why=f"uses {words}", alters=words)
        for name, words in {**_OTHERS, **named}.items()
    ]
