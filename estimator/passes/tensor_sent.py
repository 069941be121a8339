"""What torch's collectives of tensor parallelism allocate besides their results: events of one op, in their order.

    all_reduce        sum                                     the term stays until the sum is there
    all_gather        flat, whole, -flat                      ranks' parts come one after the other; along any dimension
                                                              but the first they are put in order by a copy
    reduce_scatter    copy, part, -copy, -whole               the same copy before it is sent
    log_softmax       shifted, exponentials, -exponentials, result, -shifted    over a part of the vocabulary
    its gradient      exponentials, sum, -exponentials, result, -sum
    gathered logits   flat, whole, -flat, exact, -whole       a vocabulary that tp does not divide loses its padding

After DTensor (torch/distributed/tensor/placement_types.py and parallel/loss.py, _functional_collectives.py). Megatron's
activations begin with the sequence: it needs no copies, and sums in place.
"""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.estimator.allocator_versions import release_of
from dnnmem.estimator.trace import Event, Trace

_OWN = -1
"""Storage of what no other op sees."""


def gathered(nbytes: int, whole: int, *, copied: bool, padded: int = 0) -> tuple[Event, ...]:
    """An all-gather of `nbytes` into `whole`; `padded` is its size with padding, where it has some."""
    room = padded or nbytes
    if not copied:
        return (Event(nbytes, 0, whole),)
    if room == nbytes:
        return (Event(room, 0, _OWN), Event(room, 0, whole), Event(-room, 0, _OWN))
    flat = (Event(room, 0, _OWN), Event(room, 0, _OWN - 1), Event(-room, 0, _OWN))
    return (*flat, Event(nbytes, 0, whole), Event(-room, 0, _OWN - 1))


def scattered(nbytes: int, whole: int, size: int, part: int, *, copied: bool) -> tuple[Event, ...]:
    """A reduce-scatter of `nbytes` in `whole` into a `part` of `size` bytes; `whole` is not needed any more."""
    made = Event(size, 0, part)
    inside = (Event(nbytes, 0, _OWN), made, Event(-nbytes, 0, _OWN)) if copied else (made,)
    return (*inside, Event(-nbytes, 0, whole))


def between_softmax(events: Sequence[Event], *, forward: bool) -> tuple[Event, ...]:
    """The events of a log-softmax, or of its gradient, with two tensors as large as the result in between."""
    at = next((at for at, e in enumerate(events) if e.nbytes > 0 and e.storage >= 0), -1)
    if at < 0:
        return tuple(events)
    size, own = events[at].nbytes, min(0, *(e.storage for e in events)) - 1
    first, second = (own, own - 1) if forward else (own - 1, own)
    made = (Event(size, 0, own), Event(size, 0, own - 1), Event(-size, 0, second))
    return (*events[:at], *made, events[at], Event(-size, 0, first), *events[at + 1 :])


def gathers_with_copy(trace: Trace) -> bool:
    """Whether parts along the second dimension are put in order by a copy: not for a batch of one, as of torch 2.10."""
    release = release_of(trace.origin.versions.get("torch"))
    return trace.batch.get("batch_size") != 1 or (release is not None and release < (2, 10))
