"""Which blocks send to the host what they save: what `Offload.activations` and `Offload.blocks` say of a model.

    blocks      0  1  2  3  4  5        all: 0 to 4       every 2: 1, 3       blocks 1-2: 1, 2
    computed again as one: 1-3          0 sends, 1-3 sends the input of 1, 4 sends       the last keeps what it saves

The last block of a model keeps what it saves, since its backward pass is next.

>>> from dnnmem.estimator.plan import Offload, Plan
>>> sent_runs(Plan(offload=Offload(activations="every", every=2)), 6)
[(0, 0, False), (1, 1, True), (2, 2, False), (3, 3, True), (4, 4, False), (5, 5, False)]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.estimator.segments import Run, parse_segments, segments_text

if TYPE_CHECKING:
    from dnnmem.estimator.plan import Plan


def parse_blocks(text: str, count: int | None = None) -> tuple[int, ...]:
    """The blocks that `text` names. Raises `UsageError` for what is no list in order, within `count` blocks.

    >>> parse_blocks("0-3,7")
    (0, 1, 2, 3, 7)
    """
    try:
        runs = parse_segments(text, count)
    except UsageError as error:
        raise UsageError(error.message.replace("remat.segments", "offload.blocks"), hint=_HINT) from None
    if any(run.inner for run in runs):
        raise UsageError(f"offload.blocks is {text!r}; it is a list of blocks, none within another", hint=_HINT)
    return tuple(block for run in runs for block in range(run.first, run.last + 1))


def blocks_text(blocks: Iterable[int]) -> str:
    """What `parse_blocks` reads.

    >>> blocks_text([7, 0, 1, 2, 3])
    '0-3,7'
    """
    runs: list[Run] = []
    for block in sorted(blocks):
        if runs and runs[-1].last == block - 1:
            runs[-1] = Run(first=runs[-1].first, last=block)
        else:
            runs.append(Run(first=block, last=block))
    return segments_text(runs)


def sent_runs(plan: Plan, count: int) -> list[tuple[int, int, bool]]:
    """First and last block of each run of a model's `count` blocks, and whether what it saves travels.

    A run is a block, or several that are computed again as one: these save the input of the first, and it decides.
    Raises `UsageError` for blocks that the model does not have, `UnsupportedError` where nothing would travel.
    """
    offload = plan.offload
    if offload.activations == "blocks":
        chosen = set(parse_blocks(offload.blocks, count))
    else:
        every = offload.every if offload.activations == "every" else 1
        chosen = set(range(every - 1, count, every))
    runs = _runs(plan, count)
    found = [(first, last, first in chosen and last < count - 1) for first, last in runs]
    if not any(sent for _, _, sent in found):
        raise UnsupportedError(
            f"offload.activations {offload.activations} sends nothing of a model with {count} blocks in lists: the "
            "last one keeps what it saves, and one before it is to be chosen",
            hint="--set offload.activations=none",
        )
    return found


def _runs(plan: Plan, count: int) -> list[tuple[int, int]]:
    again = parse_segments(plan.remat.segments, count) if plan.remat.policy == "segments" else ()
    found: list[tuple[int, int]] = []
    block = 0
    while block < count:
        run = next((run for run in again if run.first == block), None)
        found.append((block, run.last if run else block))
        block = found[-1][1] + 1
    return found


_HINT = "--set offload.blocks=0-3,7"
