"""One step of a model, bare and recorded, on the GPU of this process: is the trace what the allocator did?"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from itertools import groupby

import torch

from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.timeline import alive_at, timeline
from dnnmem.estimator.trace import Kind, Origin, Trace
from dnnmem.profilers.cuda import MAX_HISTORY, _build, _history, profile_cuda
from dnnmem.profilers.step import Target
from tests.profilers.recorded import CLEARED

STEPS = 3
_SIGNS = {"alloc": 1, "free_requested": -1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A recorded step beside a bare one."""

    bare: tuple[int, ...]
    """Signed bytes of each allocation and free while nobody watched."""
    told: tuple[int, ...]
    """The same of the trace."""
    reserved_bytes: int
    """Peak of reserved memory of the bare step."""
    replayed_bytes: int
    """The same by playing the trace from process start."""
    unlabelled: float
    """Share of the bytes at the peak that belong to no module, and not to the loss, the batch or the update."""

    @property
    def is_equal(self) -> bool:
        """Event by event, and to the byte."""
        return self.bare == self.told and self.reserved_bytes == self.replayed_bytes


def compare(target: Target, *, steps: int = STEPS, autocast: bool = False) -> Comparison:
    """Both runs, one after the other; `autocast`: order within a run of frees does not count.

    Autocast's cache is a hash map by address: the copies it drops at its end die in an order of no meaning.
    """
    bare = _bare_events(target, steps)
    _empty_gpu()
    torch.manual_seed(0)
    trace, measured = profile_cuda(target, steps=steps, repeats=0, origin=Origin(), timed=False, on_step=lambda _: None)
    _empty_gpu()
    told = [event.nbytes for _, event in trace.events()]
    order = _sorted_frees if autocast else tuple
    return Comparison(
        bare=order(bare),
        told=order(told),
        reserved_bytes=measured.reserved_bytes,
        replayed_bytes=replay_trace(trace).peak_reserved_bytes,
        unlabelled=unlabelled(trace),
    )


def unlabelled(trace: Trace) -> float:
    """Share of the bytes at the peak that were neither named nor made by an operator of a known place."""
    alive = [trace.storages[number] for number in alive_at(trace, timeline(trace).peak) if number >= 0]
    lost = (s.nbytes for s in alive if not s.module and not s.name and s.kind is not Kind.INPUT)
    return sum(lost) / sum(s.nbytes for s in alive)


def _bare_events(target: Target, steps: int) -> list[int]:
    """Allocations and frees of the last of `steps` steps, in order; nothing but the allocator itself watches."""
    _empty_gpu()
    torch.manual_seed(0)
    built = _build(target)
    for _ in range(steps - 1):
        target.train_step(built.model, built.batch, built.optimizer)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.memory._record_memory_history("all", context=None, max_entries=MAX_HISTORY, **CLEARED)
    target.train_step(built.model, built.batch, built.optimizer)
    history = _history()
    torch.cuda.memory._record_memory_history(None)
    return [event["size"] * _SIGNS[event["action"]] for event in history if event["action"] in _SIGNS]


def _sorted_frees(events: list[int]) -> tuple[int, ...]:
    """The events, each run of frees in order of size."""
    runs = (list(run) for _, run in groupby(events, key=lambda nbytes: nbytes < 0))
    return tuple(nbytes for run in runs for nbytes in (sorted(run) if run[0] < 0 else run))


def _empty_gpu() -> None:
    """Nothing of an earlier run is there: no tensor, no workspace, no cached block."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
