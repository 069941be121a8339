"""A million events on the simulated allocator: seconds, memory, and how much slower than a bare loop over them.

    python benchmarks/allocator_speed.py

The events are those of a training step's shape, made up: activations of mixed sizes that live in a stack, temporaries
between them. Exits with 1 if a limit is broken; the ratio is to a loop that keeps a dict of live sizes, in this run.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Iterable

from dnnmem.estimator.replay import replay
from dnnmem.estimator.trace import Event

EVENTS = 1_000_000
DEPTH = 2_000
SECONDS, MEMORY = 4.0, 2**30
SIZES = (512, 4096, 65_536, 2**20, 3 * 2**20, 12 * 2**20, 100 * 2**20)


def made_up(count: int) -> list[Event]:
    """`count` events: layers go up and down, each allocating a block that lives and a temporary that does not."""
    chance = random.Random(0)  # noqa: S311 - sizes, no secrets
    events: list[Event] = []
    live: list[Event] = []
    number, rising = 0, True
    while len(events) < count:
        size = chance.choice(SIZES) + 512 * chance.randrange(64)
        temporary = Event(size // 2, 0, number)
        events += [temporary, temporary._replace(nbytes=-temporary.nbytes)]
        if rising:
            live.append(Event(size, 0, number + 1))
            events.append(live[-1])
        else:
            last = live.pop()
            events.append(last._replace(nbytes=-last.nbytes))
        number += 2
        rising = len(live) < DEPTH if rising else not live
    return events[:count]


def bare(events: Iterable[Event]) -> int:
    """The peak of requested bytes, by the shortest loop that checks what `replay` checks."""
    sizes: dict[int, int] = {}
    now = peak = 0
    for nbytes, _, storage in events:
        if nbytes > 0:
            sizes[storage] = nbytes
        else:
            del sizes[storage]
        now += nbytes
        peak = max(peak, now)
    return peak


def main() -> int:
    """1 if it is too slow, takes too much, or finds another peak."""
    events = made_up(EVENTS)
    start = time.process_time()
    peak = bare(events)
    plain = time.process_time() - start
    start = time.process_time()
    result = replay(events)
    seconds = time.process_time() - start
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{len(events):,} events: {seconds:.2f} s of CPU (limit {SECONDS:g}), {seconds / plain:.1f} x a bare loop")
    print(f"largest resident memory {rss / 2**20:.0f} MiB (limit {MEMORY / 2**20:.0f}), events included")
    return 0 if seconds <= SECONDS and rss <= MEMORY and result.peak_requested_bytes == peak else 1


if __name__ == "__main__":
    sys.exit(main())
