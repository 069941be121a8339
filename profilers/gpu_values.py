"""True values of small tensors on a virtual GPU: ids, masks, lengths, steps, scales and routes.

Host code that reads them then takes the path that it takes on a real one.

Every operator still runs on the virtual GPU, for its allocations; if all that it reads is small and known, it runs on
the CPU as well, and its result is put behind the GPU's address. It is seen by kernels under a dispatch key that no
build of torch uses (autocast for IPUs): not by a TorchDispatchMode, under which autograd allocates otherwise. They run
above autograd and above such modes, so that a recorder sees the operator itself and no twin.

    aten.eq(ids, 0)  ->  _run  ->  real operator: autograd, recorder, allocator
                               `->  CPU, on twins: [True, False, ...]  ->  written behind the address
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from dnnmem.profilers import gpu_assumptions as assumptions
from dnnmem.profilers.gpu_detection import MODULE, assume_matches
from dnnmem.profilers.gpu_operators import Operator, find_operators, read_by, run_on_cpu, written
from dnnmem.profilers.gpu_shapes import Counts
from dnnmem.profilers.gpu_twins import ASSUMED, MOST_BYTES, MOST_COPY_BYTES, TRUE, UNKNOWN, Twins, small
from dnnmem.profilers.script_imports import call_when_loaded
from dnnmem.profilers.tensors import tensors_in

KEY = "AutocastIPU"
"""The dispatch key of these kernels."""
_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_SKIPPED = ("aten::empty", "aten::new_empty", "aten::record_stream")
_KEEPS = frozenset({
    "aten::_amp_foreach_non_finite_check_and_unscale_", "aten::detach_", "aten::squeeze_", "aten::t_", "aten::resize_",
    "aten::set_",
})  # fmt: skip
"""Operators whose small results stay as they were: no gradient is taken to be infinite, and views change no values."""
_MOVES = frozenset({
    "aten::copy_", "aten::clone", "aten::contiguous", "aten::to", "aten::_to_copy", "aten::cat", "aten::stack",
    "aten::index_select", "aten::_foreach_copy_", "aten::repeat", "aten::reshape", "aten::flatten", "aten::expand_copy",
})  # fmt: skip
"""Operators that only carry bytes, whether anyone knows them or not."""
_KEEP_SHARE = frozenset({
    "aten::to", "aten::_to_copy", "aten::clone", "aten::contiguous", "aten::eq", "aten::gt", "aten::greater",
    "aten::ne", "aten::bool",
})  # fmt: skip
"""Operators after which as many elements are not 0."""
_FROM_DATA = "aten::lift_fresh"
"""What `torch.tensor` does last: the driver has moved the bytes unseen."""
_COLLECTIVES = ("c10d::", "_c10d_functional::")
_FROM_ONE = ("c10d::broadcast", "c10d::recv", "c10d::scatter")
"""Collectives whose result another rank knows."""
_READS = frozenset({"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"})
_COMPARES = frozenset({"aten::equal", "aten::allclose"})
_SENT = "other ranks are taken to send what this one sends"


@dataclass(slots=True)
class _Call:
    """An operator that runs."""

    name: str
    """Without the overload."""
    func: Any
    """As `torch.ops` has it."""
    args: tuple[Any, ...]
    """Positional arguments."""
    kwargs: dict[str, Any]
    """The others."""
    inputs: list[Tensor]
    """Tensors among them."""
    on_gpu: list[Tensor]
    """Those on the GPU."""
    is_formula: bool
    """Whether autograd calls it."""
    out: Any = None
    """What it returned."""
    worth: int = UNKNOWN
    """What the values that it has read are worth."""


class SmallValues:
    """Those kernels; in force in the thread that makes it, and in autograd's threads that it starts."""

    def __init__(self) -> None:
        """Register it; the process has virtual GPUs."""
        self.assumed: Counter[str] = Counter()
        """How often a value or shape that nobody knows was assumed, by sentence."""
        self.twins = Twins()
        """What is known."""
        self._counts = Counts(self.twins, self.assumed)
        self._random: torch.Generator | None = None
        self._key = getattr(torch._C.DispatchKey, KEY)
        self._keys = torch._C.DispatchKeySet(self._key)
        names = find_operators(_FROM_DATA)
        spaces = {"_", *(name.partition("::")[0] for name in names)}
        self._libraries = {name: torch.library.Library(name, "IMPL") for name in spaces}
        for name in names:
            _registry(self._libraries, name).impl(name, KEY, partial(self._run, Operator(name)))
        _registry(self._libraries, "_").fallback(KEY, torch.library.fallthrough_kernel)
        _registry(self._libraries, "aten").impl(assumptions.CHECK, "CUDA", assumptions.succeed)
        call_when_loaded(MODULE, lambda: assume_matches(self.twins))
        torch._C._dispatch_tls_set_dispatch_key_excluded(self._key, False)  # noqa: FBT003
        torch._C._dispatch_tls_set_dispatch_key_included(self._key, True)  # noqa: FBT003

    def close(self) -> None:
        """Put it out of force."""
        torch._C._dispatch_tls_set_dispatch_key_included(self._key, False)  # noqa: FBT003
        for library in self._libraries.values():
            library._destroy()

    def notes(self) -> list[str]:
        """What was assumed, in sentences."""
        return [
            f"{sentence} ({count} {'time' if count == 1 else 'times'})"
            for sentence, count in sorted(self.assumed.items())
        ]

    def facts(self) -> dict[str, float | int | str]:
        """How many shapes were taken as large as they can be; empty if none was."""
        return {"shapes_bounded": self._counts.bounded} if self._counts.bounded else {}

    def _run(self, operator: Operator, *args: Any, **kwargs: Any) -> Any:
        """Every operator comes here, above autograd."""
        with torch._C._ExcludeDispatchKeyGuard(self._keys):
            func = operator.overload()
            if sys.is_finalizing() or (torch._C._len_torch_dispatch_stack() and _is_traced()):
                return func._op(*args, **kwargs)
            if torch._C._functorch.peek_interpreter_stack() is not None:
                return self._transformed(func._op(*args, **kwargs))
            inputs = [*tensors_in(args), *(tensors_in(kwargs.values()) if kwargs else ())]
            if not all(type(tensor) in _PLAIN for tensor in inputs):
                return func._op(*args, **kwargs)
            on_gpu = [tensor for tensor in inputs if tensor.is_cuda]
            if not on_gpu and not _may_make_cuda(inputs, kwargs):
                return func._op(*args, **kwargs)
            call = _Call(operator.base, func, args, kwargs, inputs, on_gpu, is_formula=_is_formula())
            counts = None
            if on_gpu and self._counts.concerns(call.name):
                with torch.no_grad(), torch._C._DisableTorchDispatch():
                    counts = self._counts.find(call.name, args)
            call.out = func._op(*args, **kwargs) if counts is None else self._run_told(counts, call)
            with torch.no_grad(), torch._C._DisableTorchDispatch():
                return self._give_values(call)

    def _transformed(self, out: Any) -> Any:
        """What an operator gives inside vmap or grad, whose tensors wrap others: nobody knows the values of those."""
        for tensor in tensors_in((out,)):
            inner = tensor
            while torch._C._functorch.is_functorch_wrapped_tensor(inner):
                inner = torch._C._functorch.get_unwrapped(inner)
            if inner.is_cuda and small(inner):
                self.twins.forget(inner)
        return out

    def _run_told(self, counts: Sequence[int], call: _Call) -> Any:
        """Run an operator whose host code reads `counts`."""
        self.twins.expect(counts)
        try:
            return call.func._op(*call.args, **call.kwargs)
        finally:
            self.twins.expect(None)

    def _give_values(self, call: _Call) -> Any:
        """Give the results of an operator that has run their values; returns them, or what they must be instead."""
        name, on_gpu = call.name, call.on_gpu
        if name.startswith(_COLLECTIVES):
            self._carried(call)
        elif name == _FROM_DATA:
            for tensor in filter(small, on_gpu):
                self.twins.mark(tensor, TRUE)
        elif name not in _KEEPS:
            call.worth = self._worth(read_by(call.func, call.kwargs, on_gpu))
            if name in _READS or name in _COMPARES:
                self._note_read(on_gpu, call.worth)
                return self._on_cpu(call, {}) if call.worth and name in _COMPARES and on_gpu else call.out
            results = _results(call)
            if results:
                self._settle(call, results)
            elif on_gpu and name in _MOVES:
                self._to_host(on_gpu[0], call.out, call.worth)
        return call.out

    def _worth(self, tensors: list[Tensor]) -> int:
        """What the values that an operator reads are worth; assumptions count once somebody reads them."""
        worth = self.twins.worth(tensors)
        if worth == ASSUMED:
            self.assumed.update(filter(None, map(self.twins.assumption, tensors)))
        return worth

    def _settle(self, call: _Call, results: list[Tensor]) -> None:
        """Put something behind small results: what the driver has moved, what the CPU computes, or what is assumed."""
        name, worth = call.name, call.worth
        derived = worth > UNKNOWN and any(t.numel() * t.element_size() > MOST_BYTES[True] for t in call.on_gpu)
        kept = [t for t in results if small(t, derived=derived) and not (call.is_formula and t.is_floating_point())]
        for tensor in results:
            if not any(tensor is other for other in kept):
                self.twins.forget(tensor)
        if not kept:
            self._settle_shares(call, results)
        elif call.inputs and not call.on_gpu:
            self._from_host(call, kept)
        elif (worth or name in _MOVES) and not name.startswith(_SKIPPED) and self._compute(call, kept):
            return
        elif name in assumptions.TRUTHS:
            for tensor in kept:
                values = torch.full(tensor.shape, assumptions.TRUTHS[name], dtype=tensor.dtype, device="cpu")
                self.twins.assume(tensor, values, assumptions.told(name))
        else:
            self._assume(call, kept)

    def _assume(self, call: _Call, kept: list[Tensor]) -> None:
        """Nobody knows the results: they read as 0, or as balanced routing has them."""
        for tensor in kept:
            self.twins.forget(tensor)
        made = list(tensors_in((call.out,)))
        if call.name == "aten::sum" and (share := self.twins.share(call.on_gpu[0])) is not None:
            value = round(share * call.on_gpu[0].numel() / max(1, made[0].numel()))
            values = torch.full(made[0].shape, value, dtype=made[0].dtype, device="cpu")
            self.twins.assume(made[0], values, assumptions.told("aten::one_hot"))
        elif assumptions.is_choice(call.name) and made and any(made[-1] is tensor for tensor in kept):
            chosen = assumptions.choice(call.name, call.args, call.kwargs, made)
            if chosen is not None:
                self.twins.assume(made[-1], chosen, assumptions.told(call.name))

    def _settle_shares(self, call: _Call, results: list[Tensor]) -> None:
        """Of tensors that are too large for their values to be kept: how much of them is not 0."""
        if call.name == "aten::one_hot":
            self.twins.set_share(results[0], 1 / results[0].shape[-1])
            self.assumed[assumptions.told(call.name)] += 1
        elif call.name in _KEEP_SHARE and call.on_gpu and results[0].numel() == call.on_gpu[0].numel():
            share = self.twins.share(call.on_gpu[0])
            if share is not None and results[0] is not call.on_gpu[0]:
                self.twins.set_share(results[0], share)

    def _from_host(self, call: _Call, results: list[Tensor]) -> None:
        """The driver has moved what is small, unless a kernel had a hand in it."""
        for tensor in results:
            if call.name in _MOVES and tensor.shape == call.inputs[0].shape:
                self.twins.write(tensor, call.inputs[0].to(tensor.dtype), TRUE)
            elif tensor.numel() * tensor.element_size() <= MOST_COPY_BYTES:
                self.twins.mark(tensor, TRUE)

    def _to_host(self, source: Tensor, out: Any, worth: int) -> None:
        """The host reads a tensor as a whole."""
        if not isinstance(out, Tensor) or out.is_cuda or out.layout is not torch.strided:
            return
        self._note_read([source], worth)
        nbytes = source.numel() * source.element_size()
        if worth and (nbytes > MOST_COPY_BYTES or not source.is_contiguous() or out.dtype != source.dtype):
            out.copy_(self.twins.read(source))  # a kernel has a hand in it, or it is more than the driver moves
        elif not worth and nbytes <= MOST_COPY_BYTES:
            out.zero_()

    def _note_read(self, on_gpu: list[Tensor], worth: int) -> None:
        if worth == UNKNOWN and on_gpu and not on_gpu[0].dtype.is_floating_point:
            what = "a truth" if on_gpu[0].dtype is torch.bool else f"an {str(on_gpu[0].dtype)[6:]}"
            self.assumed[f"{what} that nobody knows is read back as {'false' if what == 'a truth' else 0}"] += 1

    def _carried(self, call: _Call) -> None:
        """A collective has run: the virtual NCCL carries what is small, and what other ranks have if they run."""
        tensors = [t for t in (*call.on_gpu, *tensors_in((call.out,))) if t.is_cuda and small(t)]
        known = [t for t in tensors if self.twins.worth([t])]
        worth = max((self.twins.worth([t]) for t in known), default=UNKNOWN)
        together = self.twins.together
        arrives = together and call.name.startswith(_FROM_ONE)
        integers = together or (together is not None and call.name.startswith("c10d::recv"))
        swaps = not together and ("alltoall" in call.name or "all_to_all" in call.name)
        for tensor in tensors:
            if swaps and known and tensor is not known[0]:
                if (tensor.shape, tensor.dtype) == (known[0].shape, known[0].dtype):
                    self.twins.assume(tensor, self.twins.read(known[0]), _SENT)
            elif arrives or (integers and not tensor.is_floating_point()):
                self.twins.mark(tensor, TRUE)
            else:
                self.twins.mark(tensor, worth)

    def _compute(self, call: _Call, kept: list[Tensor]) -> bool:
        """Run the operator on twins and write what it says; False if the CPU cannot, or has not all of them."""
        on_gpu = (t for t in tensors_in((*call.args, *call.kwargs.values())) if t.is_cuda)
        if not call.worth and not all(small(t) for t in on_gpu):
            return False
        twins: dict[int, Tensor] = {}
        try:
            result = self._on_cpu(call, twins)
        except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError):
            return False
        keep = {id(tensor) for tensor in kept}
        for tensor in written(call.func, call.args, call.kwargs):
            if id(tensor) in twins and id(tensor) in keep:
                self.twins.write(tensor, twins[id(tensor)], call.worth)
        if not call.func._schema.is_mutable:
            for made, value in zip(tensors_in((call.out,)), tensors_in((result,)), strict=False):
                if id(made) in keep and made.shape == value.shape:
                    self.twins.write(made, value, call.worth)
        return True

    def _on_cpu(self, call: _Call, twins: dict[int, Tensor]) -> Any:
        """The operator's results over twins, which it notes by the tensor they belong to."""

        def twin_of(tensor: Tensor) -> Tensor:
            if id(tensor) not in twins:
                twins[id(tensor)] = self.twins.read(tensor)
            return twins[id(tensor)]

        return run_on_cpu(call.func, call.args, call.kwargs, twin_of, self._generator)

    def _generator(self) -> torch.Generator:
        """Random numbers of its own: the program's stay as they would be."""
        if self._random is None:
            self._random = torch.Generator(device="cpu")
            self._random.manual_seed(0)
        return self._random


def _results(call: _Call) -> list[Tensor]:
    """Tensors on the GPU that the operator has written."""
    made = [t for t in tensors_in((call.out,)) if t.is_cuda and type(t) in _PLAIN]
    if not call.func._schema.is_mutable:
        known = {id(tensor) for tensor in call.inputs}
        return [tensor for tensor in made if id(tensor) not in known]
    return [*made, *(t for t in written(call.func, call.args, call.kwargs) if t.is_cuda)]


def _is_formula() -> bool:
    """Whether autograd's engine or its formulas call: what they add up may not have a further owner."""
    return torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()


def _is_traced() -> bool:
    """Whether torch's own modes are active, for which tensors stand for others: FakeTensors, proxies, functionals."""
    return any(getattr(mode, "_mode_key", None) is not None for mode in _get_current_dispatch_mode_stack())


def _registry(libraries: dict[str, torch.library.Library], name: str) -> Any:
    """What an operator's library registers with; its own methods check more, and take longer."""
    return libraries[name.partition("::")[0]].m


def _may_make_cuda(inputs: list[Tensor], kwargs: dict[str, Any]) -> bool:
    """Whether an operator that reads nothing on the GPU may give out something there."""
    device = kwargs.get("device")
    return bool(inputs) or (device is not None and torch.device(device).type == "cuda")
