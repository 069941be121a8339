"""Everything that watches a script from the moment torch is loaded: steps, peaks, failed allocations, other ranks.

Nothing here allocates on the GPU or changes what the script's operators do: the peaks are those of a run that nobody
watches. What does change it, the recorder, is asked for apart (`ScriptRequest.record`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import distributed
from torch.optim import Optimizer

from dnnmem.profilers.script_compile import FixedChoices, graphs
from dnnmem.profilers.script_failure import MemoryWatch, is_out_of_memory
from dnnmem.profilers.script_peaks import PeakMeter
from dnnmem.profilers.script_result import DeviceMemory, OutOfMemory
from dnnmem.profilers.script_spawn import Spawned
from dnnmem.profilers.script_steps import StepCounter
from dnnmem.profilers.virtual import is_virtual
from dnnmem.profilers.virtual_facts import Facts, cudnn_facts, cudnn_notes, nccl_facts, nccl_notes
from dnnmem.profilers.virtual_gpu.certainty import certainty_notes

if TYPE_CHECKING:
    from dnnmem.profilers.script import Session


_WATCHDOG_SECONDS = 0.25
"""Until NCCL's watchdog has seen the end of the first step's collectives: it looks ten times a second
(`kWatchdogThreadSleepMillis`), and holds their tensors till then. DDP's first buckets are let go after one step, which
takes longer than that on a GPU, and less on a virtual one."""


class Watch:
    """The watchers of one process."""

    def __init__(self, session: Session) -> None:
        """Install all that `session.request` asks for."""
        self._session = session
        request = session.request
        self._recording: Any = None
        self._groups: Any = None
        self._values: Any = None
        self._choices: Any = None
        self._meter = PeakMeter()
        self._counter = StepCounter(request.steps, on_step=self._on_step, on_end=self._on_end)
        self._memory = MemoryWatch(session.roots, lambda: self._counter.steps)
        self._spawned = Spawned(request)
        if request.alone:
            from dnnmem.profilers.script_groups import Groups

            self._groups = Groups()
        else:
            from dnnmem.profilers.script_objects import carry_objects

            carry_objects()
        if request.values and is_virtual():
            from dnnmem.profilers.gpu_values import SmallValues

            self._values = SmallValues()
        if is_virtual():
            self._choices = FixedChoices(pass_through=request.values)
        if request.record:
            from dnnmem.profilers.script_record import Recording

            self._recording = Recording(session)

    def facts(self) -> dict[str, Any]:
        """What is known so far, as fields of a `RankResult`."""
        sources = (self._groups, self._spawned, self._values, self._choices)
        notes = [note for source in sources if source is not None for note in source.notes()]
        memory = self._meter.memory()
        told = _virtual_facts(memory) if is_virtual() else {}
        told |= self._values.facts() if self._values is not None else {}
        return {
            "steps": self._counter.steps,
            "optimizers": dict(self._counter.by_optimizer),
            "memory": memory,
            "graphs": graphs(),
            "facts": told,
            "notes": (*notes, *cudnn_notes(told), *nccl_notes(told), *(certainty_notes() if is_virtual() else ())),
        }

    def last_failure(self, message: str) -> OutOfMemory | None:
        """The last allocation that failed."""
        failures = self._memory.failures
        return replace(failures[-1], message=message) if failures else None

    def out_of_memory(self, error: BaseException) -> OutOfMemory | None:
        """What failed, if `error` comes from a failed allocation."""
        cause = is_out_of_memory(error)
        if cause is None:
            return None
        return self.last_failure(str(cause)) or OutOfMemory(message=str(cause), step=self._counter.steps + 1)

    def _on_step(self, steps: int, optimizers: Sequence[Optimizer]) -> None:
        self._meter.end_step()
        self._session.step_done(steps)
        if steps == 1 and _has_nccl():
            time.sleep(_WATCHDOG_SECONDS)
        if self._recording is not None:
            self._recording.step_done(steps, optimizers)

    def _on_end(self) -> None:
        self._session.leave("ran", stopped=True)


def _virtual_facts(memory: Sequence[DeviceMemory]) -> Facts:
    return cudnn_facts() | nccl_facts(max((gpu.nccl_bytes or 0 for gpu in memory), default=0))


def _has_nccl() -> bool:
    return distributed.is_available() and distributed.is_initialized() and "nccl" in distributed.get_backend()
