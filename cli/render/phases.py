"""Where the phases of a step begin on its timeline: forward, backward, step, or several rounds of them.

>>> from dnnmem.estimator.timeline import timeline
>>> from dnnmem.estimator.trace import Event, Op, Phase
>>> work = (Event(4, 0, -1), Event(-4, 0, -1))
>>> trace = Trace(ops=(Op(name="f", events=work), Op(name="b", phase=Phase.BACKWARD, events=work)), storages={})
>>> phase_starts(trace, timeline(trace))
(('forward', 0), ('backward', 3))
"""

from __future__ import annotations

import numpy as np

from dnnmem.estimator.timeline import Timeline
from dnnmem.estimator.trace import Phase, Trace

_PHASES = tuple(Phase)


def phase_starts(trace: Trace, timeline: Timeline) -> tuple[tuple[str, int], ...]:
    """Phases in the order they run, each with the index of its first entry in `timeline(trace)`; the first has 0."""
    if len(timeline.op) < 2:
        return ()
    of_op = np.array([_PHASES.index(op.phase) for op in trace.ops])
    codes = of_op[timeline.op[1:]]
    changes = (
        np.flatnonzero(codes[1:] != codes[:-1]) + 2
    )  # entry 0 is the start of the step and belongs to the first phase
    return tuple((_PHASES[codes[max(i - 1, 0)]].value, int(i)) for i in (0, *changes))
