"""What any piece of code needs: the most bytes that its tensors hold at once, and whose they are at that moment.

    device   what counts                                                   modules
    cpu      storages that the code makes or touches; the code really runs   yes
    fake     the same, of FakeTensors, with the kernels of a GPU if named    yes
    cuda     the caching allocator's own peak, whoever holds the memory      only if recorded, which changes the peak

The recorder and its rewrite are those of a training step: what the code leaves behind is freed after its end.

>>> import torch
>>> with measuring("two tensors", device="cpu") as found:
...     a, b = torch.ones(256), torch.ones(256)
>>> found.entry.allocated_bytes
2048
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from dnnmem.estimator.baseline import Entry, Key, entry_of
from dnnmem.estimator.build import build_profile
from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.profile import Measurement, Profile
from dnnmem.estimator.trace import Kind, Origin
from dnnmem.profilers.faking import Faking
from dnnmem.profilers.found_modules import FoundModules, Path
from dnnmem.profilers.holds import saved_hooks
from dnnmem.profilers.kinds import Names, naming_gradients, parameter_names
from dnnmem.profilers.record import Recorder
from dnnmem.profilers.rewrite import to_trace


@dataclass(slots=True, kw_only=True)
class Measured:
    """What was found; complete once the code has ended."""

    entry: Entry
    """Bytes, under the conditions they hold for."""
    profile: Profile | None = None
    """All that is known of the code, as of a training step; None where nothing was recorded."""


@contextmanager
def measuring(
    target: str, *, device: str, gpu: Device | None = None, faking: Faking | None = None, record: bool = False
) -> Iterator[Measured]:
    """Measure what runs until the context ends, if it ends well.

    Args: `device`: `cpu`, `fake` (within `faking`), `cuda` or `virtual` (in a process that has GPUs, whose statistics
    are those of the recorded run with `record`). `gpu` is whose they are, or are assumed to be.
    Raises `UsageError` for a model in a fake run that was made outside of it.
    """
    key = Key(target=target, device=device, gpu=gpu.name if gpu else None, torch=_version())
    found = Measured(entry=Entry(key=key, allocated_bytes=0))
    gc.collect()
    with ExitStack() as stack:
        if device in {"cuda", "virtual"}:
            stack.enter_context(_allocator_peak(found))
        if device in {"cpu", "fake"} or record:
            stack.enter_context(_recording(found, gpu, faking))
        yield found


@contextmanager
def _recording(found: Measured, gpu: Device | None, faking: Faking | None) -> Iterator[None]:
    key = found.entry.key
    names: Names = {}
    with ExitStack() as stack:

        def name_model(model: nn.Module, head: Path) -> None:
            names.update({i: ((*head, *path), name) for i, (path, name) in parameter_names(model).items()})
            recorder.name_model(model, head)
            stack.enter_context(naming_gradients(recorder, names, model))

        tracker = FoundModules(name_model)
        on_gpu = key.device in {"cuda", "virtual"}
        rules = faking.rules if faking else None
        recorder = _Recorder(
            tracker,
            device_type="cuda" if on_gpu else "cpu",
            fake=faking.mode if faking is not None else None,
            inside=rules.inside if rules else None,
        )
        stack.enter_context(tracker)
        stack.enter_context(naming_gradients(recorder, names, nn.Module()))
        recorder.start_step()
        stack.enter_context(recorder)
        stack.enter_context(saved_hooks(recorder))
        yield
    origin = Origin(
        target=key.target,
        device=key.device,
        gpu=key.gpu,
        versions={"torch": torch.__version__},
        notes=tuple(recorder.log.notes),
    )
    trace, _ = to_trace(recorder.log, modules=tracker.described(), batch={}, origin=origin)
    found.profile = build_profile(trace, Measurement(), None if on_gpu else gpu)
    entry = entry_of(found.profile, trace)
    found.entry = replace(entry, key=key, total_bytes=None)


class _Recorder(Recorder):
    """Names models as they are found; in a fake run it refuses those that are real."""

    def name_model(self, model: nn.Module, head: Path) -> None:
        """Name the parameters and buffers of `model`: they were there before the operator that runs."""
        self._current = (-1, None)
        for kind, named in ((Kind.PARAM, model.named_parameters()), (Kind.BUFFER, model.named_buffers())):
            for name, tensor in named:
                if self._fake and kind is Kind.PARAM and not isinstance(tensor, FakeTensor):
                    raise UsageError(
                        f"{type(model).__name__} was built outside of the fake run, and holds real memory",
                        hint="build the model where it is measured (in a test: in its body, or in a fixture of its "
                        "own scope), or measure on device='cpu'",
                    )
                path = (*head, *name.split("."))
                self.watch(tensor, kind, path[:-1], path[-1])

    def tracks(self, tensor: Tensor) -> bool:
        """True if the memory of `tensor` counts; in a fake run that of real tensors too, which others have made."""
        if self._fake and not isinstance(tensor, FakeTensor):
            return tensor.device.type == self._device_type and tensor.layout is torch.strided
        return super().tracks(tensor)


_open: list[dict[str, int]] = []
"""Peaks of the measurements on GPUs that have not ended, the outermost first: the allocator has one set of peaks."""


@contextmanager
def _allocator_peak(found: Measured) -> Iterator[None]:
    mine = {"allocated_bytes": 0, "reserved_bytes": 0}
    _fold()
    _open.append(mine)
    try:
        yield
        _fold()
    finally:
        _open.remove(mine)
    recorded = found.entry
    found.entry = replace(recorded, allocated_bytes=mine["allocated_bytes"], reserved_bytes=mine["reserved_bytes"])


def _fold() -> None:
    """Take the peaks since the last fold into all that is open, and start them anew."""
    if not torch.cuda.is_initialized():
        return
    devices = range(torch.cuda.device_count())
    stats: list[dict[str, Any]] = [torch.cuda.memory_stats(index) for index in devices]
    for index in devices:
        torch.cuda.reset_peak_memory_stats(index)
    for peaks in _open:
        for name in peaks:
            peaks[name] = max([peaks[name], *(int(one.get(f"{name}.all.peak", 0)) for one in stats)])


def _version() -> str:
    return ".".join(torch.__version__.split(".")[:2])
