"""Which blocks wait, at the end of a step, until another stream is done with them, and what they do in the next one.

A block that another stream used serves again some time after its free; the host may be a step or more ahead by then.
So a step begins with blocks that wait, some of which come free in it, and it ends with others. For the step to follow
itself, what waits when it begins has the names of what waits when it ends; where several wait, a name has several.

    set-up   +a -a            +b -b                 a and b wait when the step begins
    step            +c  (a serves again)  -c        b and c wait when it ends
    closed   +c -c  +c -c  |  +c  (c serves again: the oldest)  -c
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from dnnmem.estimator.trace import Event

_Like = tuple[int, int]


def close_waits(setup: tuple[Event, ...], windows: list[list[Event]], waiting: Sequence[int]) -> tuple[Event, ...]:
    """Name what waits when the step of `windows` begins after what waits when it ends; the set-up with those names.

    `waiting`: what waits at the end of the log. What has no counterpart serves again at the end of the step.
    """
    step = [event for window in windows for event in window]
    if not waiting and all(event.nbytes for event in step):
        return setup
    ends = _frees(step, set(waiting))
    freed_here = {event.storage for event in step if event.nbytes < 0}
    over = {event.storage for event in step if not event.nbytes} - freed_here
    begins = _frees(setup, over | set(waiting))
    names: dict[int, int] = {}
    for like, left in ends.items():
        found = begins.get(like, [])
        paired = min(len(left), sum(number in over for number in found))
        names.update({number: left[i % paired] for i, number in enumerate(found) if paired})
        windows[-1].extend(Event(0, like[1], number) for number in left[paired:])
    for window in windows:
        window[:] = [_named(event, names) if not event.nbytes else event for event in window]
    return tuple(_named(event, names) for event in setup)


def _frees(events: Iterable[Event], wanted: set[int]) -> dict[_Like, list[int]]:
    """Storages of `wanted` that are freed, by (bytes, stream) in the order of their frees."""
    result: dict[_Like, list[int]] = defaultdict(list)
    for nbytes, stream, storage in events:
        if nbytes < 0 and storage in wanted:
            result[-nbytes, stream].append(storage)
    return result


def _named(event: Event, names: dict[int, int]) -> Event:
    return event._replace(storage=names.get(event.storage, event.storage))
