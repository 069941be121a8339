"""Records the last step of a script that nobody has prepared for it, operator by operator.

What a target hands to the recorder has to be found here: the model is the smallest module that holds most of what the
optimizer updates, and the batch is whatever else lives when the step begins. The step runs from one update's end to the
next one's, so that a script may clear its gradients where it likes.

    step 1 .. N-1            | zero_grad, forward, backward, step()    |
    allocator's history      | recorder, labels                        | trace, end
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Kind, Origin
from dnnmem.estimator.trace_file import save_trace
from dnnmem.profilers.capture import describe_modules
from dnnmem.profilers.cuda import MAX_HISTORY
from dnnmem.profilers.history import use_history
from dnnmem.profilers.holds import saved_hooks
from dnnmem.profilers.kinds import Names, name_model, name_rest, naming_gradients, parameter_names
from dnnmem.profilers.modules import ModuleTracker
from dnnmem.profilers.record import Recorder
from dnnmem.profilers.rewrite import to_trace
from dnnmem.profilers.script_compile import graphs

if TYPE_CHECKING:
    from dnnmem.profilers.script import Session

_WRAPPERS = frozenset({
    "DataParallel", "DeepSpeedEngine", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule",
})  # fmt: skip
"""Modules that hold the model, and do nothing that a reader would look for."""


class _PlainRecorder(Recorder):
    """Counts tensors with memory: wrappers have none of their own, and what they wrap is seen too."""

    def tracks(self, tensor: torch.Tensor) -> bool:
        """Whether the memory of `tensor` is counted."""
        return not is_traceable_wrapper_subclass(tensor) and super().tracks(tensor)

    def forget(self, storage: torch.UntypedStorage) -> None:
        """Its block is given back: whatever it holds next is another one."""
        number = self._live.get(storage._cdata)
        if number is not None:
            self._dead(number, storage._cdata)


@contextmanager
def _noting_resizes(recorder: _PlainRecorder) -> Iterator[None]:
    """Tell `recorder` of storages that are emptied and filled again without an operator: FSDP does so."""
    real = torch.UntypedStorage.resize_

    def resize(storage: torch.UntypedStorage, nbytes: int) -> Any:
        if storage.nbytes() != nbytes:
            recorder.forget(storage)
        return real(storage, nbytes)

    torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = real  # type: ignore[method-assign]


class Recording:
    """The recorder of one run; told of each step, it ends the run after the one that it records."""

    def __init__(self, session: Session) -> None:
        """Keep the allocator's history from the moment CUDA is there."""
        self._session = session
        self._recorder: Recorder | None = None
        self._open = ExitStack()
        self._model: nn.Module | None = None
        self._names: Names = {}
        self._optimizers: Sequence[Optimizer] = ()
        torch.cuda._lazy_call(_keep_history)

    def step_done(self, steps: int, optimizers: Sequence[Optimizer]) -> None:
        """`steps` are done, by `optimizers`."""
        enough = self._session.request.steps
        if steps == enough - 1:
            self._begin(optimizers)
        elif steps >= enough:
            self._end()

    def _begin(self, optimizers: Sequence[Optimizer]) -> None:
        if graphs():
            self._give_up("the program is compiled, and a recorder sees only whole graphs")
        model = self._model = find_model(optimizers)
        if model is None:
            self._give_up("no module holds the optimizer's parameters")
        gc.collect()
        tracker = ModuleTracker(model)
        recorder = _PlainRecorder(tracker, device_type="cuda", label=torch._C._cuda_setMemoryMetadata)
        names = self._names = parameter_names(model)
        name_model(recorder, model)
        _name_updated(recorder, names, optimizers)
        name_rest(recorder)
        self._open.enter_context(tracker)
        self._open.enter_context(_noting_resizes(recorder))
        self._open.enter_context(naming_gradients(recorder, names, model))
        recorder.start_step()
        self._open.enter_context(recorder)
        self._open.enter_context(saved_hooks(recorder))
        self._recorder, self._optimizers = recorder, optimizers

    def _end(self) -> NoReturn:
        recorder, model = self._recorder, self._model
        if recorder is None or model is None:
            self._give_up("the run ended before a step could be recorded")
        self._open.close()
        _name_updated(recorder, self._names, self._optimizers)
        torch.cuda.synchronize()
        traces = torch.cuda.memory._snapshot()["device_traces"]
        torch.cuda.memory._record_memory_history(None)
        try:
            use_history(recorder.log, traces[torch.cuda.current_device()])
            origin = Origin(target=self._session.request.script, device="virtual", versions=self._session.versions())
            trace, growth = to_trace(recorder.log, modules=describe_modules(model), batch={}, origin=origin)
            save_trace(trace, Measurement(growth_bytes=growth), self._session.folder / "step.trace.json.gz")
        except (DnnmemError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self._give_up(f"the recorded step cannot be told apart ({type(error).__name__}: {error})")
        self._session.leave("ran", stopped=True)

    def _give_up(self, reason: str) -> NoReturn:
        self._session.leave("ran", stopped=True, notes=(reason,))


def find_model(optimizers: Iterable[Optimizer]) -> nn.Module | None:
    """The outermost module that holds most of what `optimizers` update; wrappers give way to what they wrap."""
    wanted = {id(p): p.numel() for o in optimizers for group in o.param_groups for p in group["params"]}
    best: nn.Module | None = None
    most = (0, 0)
    for module in _modules():
        if type(module).__name__ in _WRAPPERS:
            continue
        held = sum(wanted.get(id(p), 0) for p in module.parameters())
        rank = held, sum(1 for _ in module.modules())
        if held and rank > most:
            best, most = module, rank
    return best


def _name_updated(recorder: Recorder, names: Names, optimizers: Sequence[Optimizer]) -> None:
    """Name parameters, gradients and optimizer states, the local part of those that are spread over ranks."""
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            module, name = names.get(id(parameter), ((), ""))
            for part in _parts(parameter):
                recorder.watch(part, Kind.PARAM, module, name)
            for part in _parts(parameter.grad):
                recorder.watch(part, Kind.GRAD, module, name)
            for key, value in optimizer.state.get(parameter, {}).items():
                for part in _parts(value):
                    recorder.watch(part, Kind.OPTIMIZER, module, f"{name}.{key}" if name else str(key))


def _parts(value: Any) -> Iterator[torch.Tensor]:
    """Tensors with memory in `value`: itself, what it wraps (codes and scales, a rank's part) or what it keeps."""
    if isinstance(value, torch.Tensor):
        if is_traceable_wrapper_subclass(value):
            for name in value.__tensor_flatten__()[0]:
                yield from _parts(getattr(value, name))
        else:
            yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _parts(item)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        yield from (item for item in vars(value).values() if isinstance(item, torch.Tensor))


def _modules() -> Iterable[nn.Module]:
    for thing in gc.get_objects():
        if issubclass(type(thing), nn.Module) and not isinstance(thing, torch.jit.ScriptModule):
            yield thing


def _keep_history() -> None:
    torch.cuda.memory._record_memory_history("all", context=None, max_entries=MAX_HISTORY)
    torch._C._cuda_setMemoryMetadata("~0")
