"""How a search makes its cores: the passes of the model on few blocks, in runs, repeated to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from dnnmem.estimator.coarsen import coarsen
from dnnmem.estimator.collector import collector_paused
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes import rewrite_model
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.repeat import repeat
from dnnmem.estimator.roofline import host_seconds, op_seconds
from dnnmem.estimator.search_core import Core, Rates, core_of
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.work import Work, work_of


@dataclass(slots=True, kw_only=True, eq=False)
class Maker:
    """Makes the cores of one step."""

    recorded: Recorded
    """The step."""
    rates: Rates
    """What prices its runs."""
    wholes: dict[int, Trace] = field(default_factory=dict)
    """Recorded steps with all their blocks, by the identity of the record."""

    @collector_paused()
    def core(self, plan: Plan) -> Core:
        """That of a plan; of few blocks, where all are treated alike. Raises what the passes raise."""
        recorded = self.recorded.trace(plan.batch.micro_batch or self.recorded.own_batch, plan.precision.compute)
        layers = self.recorded.layers
        if layers is not None:
            with suppress(UnsupportedError):
                few = rewrite_model(recorded, plan, self.rates.cluster)
                return core_of(few, layers, self.in_runs(few), self.rates.runs, self._seconds)
        whole = rewrite_model(self.whole(recorded), plan, self.rates.cluster)
        return core_of(whole, None, self.in_runs(whole), self.rates.runs, self._seconds)

    def whole(self, recorded: Trace) -> Trace:
        """With all blocks."""
        if self.recorded.layers is None:
            return recorded
        known = self.wholes.get(id(recorded))
        if known is None:
            known = self.wholes[id(recorded)] = repeat(recorded, self.recorded.layers)
        return known

    def in_runs(self, trace: Trace) -> Trace:
        """`trace` in runs."""
        work = work_of(trace)
        host = host_seconds(work, self.rates.model).tolist()
        return coarsen(trace, self._seconds(work), host, self.rates.runs)

    def _seconds(self, work: Work) -> Sequence[float]:
        device, model = self.rates.cluster.device, self.rates.model
        return [float(s) for s in np.nan_to_num(op_seconds(work, device, model), nan=0.0)]
