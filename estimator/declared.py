"""What a model declares of itself that saves memory: normalisation in place, and blocks that can be run backwards.

Both keep no input for the backward pass: it is worked out again from the output. They are recorded as they run, and a
report says so; no plan rewrites a model into them, since its weights or its mathematics would be others.

>>> declared_notes([Module(path=("bn1",), type="InPlaceABN")])
('bn1 is a normalisation in place (InPlaceABN): recorded as it runs, it keeps its output and no input',)
"""

from __future__ import annotations

from collections.abc import Iterable

from dnnmem.estimator.trace import Module

_WORDS = {
    "a normalisation in place": "it keeps its output and no input",
    "a run of reversible blocks": "it keeps its last output, and the inputs of blocks are worked out again from it",
}
_IN_PLACE, _REVERSIBLE = _WORDS
_KNOWN = {
    **dict.fromkeys(("InPlaceABN", "InPlaceABNSync", "InplaceAbn"), _IN_PLACE),
    **dict.fromkeys(("ReformerEncoder", "InvertibleModuleWrapper", "ReversibleSequence"), _REVERSIBLE),
}
"""Classes of inplace_abn (Rota Bulo et al. 2018), timm, transformers (Kitaev et al. 2020), memcnn, revtorch."""


def declared_notes(modules: Iterable[Module]) -> tuple[str, ...]:
    """A sentence for each such class of a model, which names the first of them."""
    places: dict[str, list[str]] = {}
    for module in modules:
        if module.type in _KNOWN:
            places.setdefault(module.type, []).append(".".join(module.path) or "the model")
    notes = []
    for kind, where in places.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        words = _KNOWN[kind]
        notes.append(f"{where[0]}{more} is {words} ({kind}): recorded as it runs, {_WORDS[words]}")
    return tuple(notes)
