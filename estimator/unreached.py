"""Which trainable parameters no gradient reaches, said in a note of a step, and read back from it.

PyTorch's DistributedDataParallel waits for the gradient of each trainable parameter, and stops at the second step that
leaves one out; FSDP2 does not. So a search offers no plan with whole gradients (ddp, zero1) for such a step.

>>> note = unreached_note(["head.weight", "a", "b", "c"])
>>> note[:62]
'no gradient reaches head.weight, a, b and 1 more, which PyTorc'
>>> any_unreached([note]), any_unreached(["something else"]), unreached_note([])
(True, False, '')
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_BEGINS = "no gradient reaches "
_NAMED = 3


def unreached_note(names: Sequence[str]) -> str:
    """A sentence for a report; empty where there are no `names`."""
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"{_BEGINS}{', '.join(names[:_NAMED])}{more}, which PyTorch's DistributedDataParallel (ddp, zero1) waits for: "
        "requires_grad_(False) says that they are not trained"
    )


def any_unreached(notes: Iterable[str]) -> bool:
    """Whether one of `notes` is such a sentence."""
    return any(note.startswith(_BEGINS) for note in notes)
