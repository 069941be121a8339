"""Pauses Python's cyclic garbage collector while a trace is made: it would walk half a million tuples to find nothing.

Ops, storages and events form no cycles; reference counts free them. Measured on 23,000 ops, passes run twice as fast.

>>> import gc
>>> with collector_paused():
...     gc.isenabled()
False
>>> gc.isenabled()
True
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Within it, nothing looks for cycles; afterwards the collector is as it was. Usable as a decorator too."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
