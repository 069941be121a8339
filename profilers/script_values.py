"""True values of small tensors on a virtual GPU: ids, masks, lengths, steps and scales.

Host code that reads them then takes the path that it takes on a real one.

Every operator still runs on the virtual GPU, for its allocations; if all that it reads is small and known, it runs on
the CPU as well, and its result is put behind the GPU's address. It is seen by kernels under a dispatch key that no
build of torch uses (autocast for IPUs): not by a TorchDispatchMode, under which autograd allocates otherwise.

    aten.eq(ids, 0)  ->  _run  ->  real operator: allocates
                               `->  CPU, on twins: [True, False, ...]  ->  written behind the address
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dnnmem.profilers.script_shapes import bounded, is_dynamic, is_masked_index, with_positions
from dnnmem.profilers.script_twins import Twins, small
from dnnmem.profilers.tensors import tensors_in

_KEY = "AutocastIPU"
_PLAIN = frozenset({Tensor, torch.nn.Parameter})
_SKIPPED = ("aten::empty", "aten::new_empty", "aten::record_stream")
_KEEPS = frozenset({
    "aten::_amp_foreach_non_finite_check_and_unscale_", "aten::detach_", "aten::squeeze_", "aten::t_", "aten::resize_",
    "aten::set_",
})  # fmt: skip
"""Operators whose small results stay as they were: no gradient is taken to be infinite, and views change no values."""
_OVERWRITES = ("aten::copy_", "aten::fill_", "aten::zero_", "aten::zero", "aten::random_")
"""Operators that do not read what they write."""
_TRUE = frozenset({"aten::isfinite", "aten::all"})
"""Operators whose result over unknown values is taken as true: nothing is infinite or missing."""
_MOVES = frozenset({
    "aten::copy_", "aten::clone", "aten::contiguous", "aten::to", "aten::_to_copy", "aten::cat", "aten::stack",
    "aten::index_select", "aten::_foreach_copy_", "aten::repeat", "aten::reshape", "aten::flatten", "aten::expand_copy",
})  # fmt: skip
"""Operators that only carry bytes, whether anyone knows them or not."""
_FROM_DATA = "aten::lift_fresh"
"""What `torch.tensor` does last: the driver has moved the bytes unseen."""
_FROM_ONE = ("c10d::broadcast", "c10d::recv", "c10d::scatter")
"""Collectives whose result another rank knows."""
_NAMESPACES = ("aten", "c10d")
_READS = frozenset({"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"})


class SmallValues:
    """Those kernels; in force in the thread that makes it, and in autograd's threads that it starts."""

    def __init__(self) -> None:
        """Register it; the process has virtual GPUs."""
        self.assumed: Counter[str] = Counter()
        """How often a value or shape that nobody knows was assumed, by sentence."""
        self._twins = Twins()
        self._random: torch.Generator | None = None
        key = getattr(torch._C.DispatchKey, _KEY)
        self._keys = torch._C.DispatchKeySet(key)
        self._libraries = {name: torch.library.Library(name, "IMPL") for name in (*_NAMESPACES, "_")}
        for name in _operators():
            _registry(self._libraries[name.partition("::")[0]]).impl(name, _KEY, partial(self._run, _Operator(name)))
        _registry(self._libraries["_"]).fallback(_KEY, torch.library.fallthrough_kernel)
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)  # noqa: FBT003
        torch._C._dispatch_tls_set_dispatch_key_included(key, True)  # noqa: FBT003

    def notes(self) -> list[str]:
        """What was assumed, in sentences."""
        return [f"{sentence} ({count} times)" for sentence, count in sorted(self.assumed.items())]

    def _run(self, operator: _Operator, *args: Any, **kwargs: Any) -> Any:
        """Every operator comes here, above autograd."""
        with torch._C._ExcludeDispatchKeyGuard(self._keys):
            func = operator.overload()
            if torch._C._len_torch_dispatch_stack() or sys.is_finalizing():
                return func(*args, **kwargs)
            if torch._C._functorch.peek_interpreter_stack() is not None:
                return self._transformed(func(*args, **kwargs))
            inputs = [*tensors_in(args), *tensors_in(kwargs.values())]
            if not all(type(tensor) in _PLAIN for tensor in inputs):
                return func(*args, **kwargs)
            on_gpu = [tensor for tensor in inputs if tensor.is_cuda]
            if not on_gpu and not _may_make_cuda(inputs, kwargs):
                return func(*args, **kwargs)
            with torch.no_grad():
                args = with_positions(func, args, self._twins, self.assumed) if is_masked_index(func, args) else args
            if on_gpu and is_dynamic(func, args):
                with torch.no_grad():
                    return self._shape(func, args, kwargs, on_gpu)
            out = func(*args, **kwargs)
            with torch.no_grad():
                return self._give_values(func, args, kwargs, inputs, out)

    def _transformed(self, out: Any) -> Any:
        """What an operator gives inside vmap or grad, whose tensors wrap others: nobody knows the values of those."""
        for tensor in tensors_in((out,)):
            inner = tensor
            while torch._C._functorch.is_functorch_wrapped_tensor(inner):
                inner = torch._C._functorch.get_unwrapped(inner)
            if inner.is_cuda and small(inner):
                self._twins.assume(inner)
        return out

    def _give_values(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], out: Any) -> Any:
        """Give the results of an operator that has run their values; returns them, or others if shapes depend on it."""
        name = func._schema.name
        on_gpu = [tensor for tensor in inputs if tensor.is_cuda]
        if name.startswith("c10d::"):
            self._carried(name, on_gpu)
            return out
        if name == _FROM_DATA:
            for tensor in filter(small, on_gpu):
                self._twins.mark(tensor, known=True)
            return out
        known = self._twins.known(_read_by(func, kwargs, on_gpu))
        if name in _READS:
            self._note_read(on_gpu, known=known)
            return out
        results = self._results(func, args, kwargs, inputs, out)
        if results and name not in _KEEPS:
            self._settle(func, args, kwargs, out, results, known=known, from_host=bool(inputs) and not on_gpu)
        return out

    def _shape(self, func: Any, args: Any, kwargs: Any, on_gpu: list[Tensor]) -> Any:
        """The results of an operator whose shape is a value; it does not run: it would read what nobody wrote."""
        if self._twins.known(on_gpu):
            return self._replace(func, args, kwargs, on_gpu[0].device)
        out = bounded(func, args, self.assumed)
        if out is None:
            return func(*args, **kwargs)
        for tensor in filter(small, tensors_in((out,))):
            self._twins.assume(tensor)
        return out

    def _settle(
        self, func: Any, args: Any, kwargs: Any, out: Any, results: list[Tensor], *, known: bool, from_host: bool
    ) -> None:
        """Put something behind small results: what the driver has moved, what the CPU computes, or what is assumed."""
        name = func._schema.name
        if from_host:
            for tensor in results:
                self._twins.mark(tensor, known=True)
        elif (name in _MOVES or (known and not name.startswith(_SKIPPED))) and self._compute(func, args, kwargs, out):
            for tensor in results:
                self._twins.mark(tensor, known=known)
        else:
            for tensor in results:
                self._twins.assume(tensor, ones=name in _TRUE)

    def _note_read(self, on_gpu: list[Tensor], *, known: bool) -> None:
        if known or not on_gpu or on_gpu[0].dtype.is_floating_point:
            return
        if on_gpu[0].dtype is torch.bool:
            self.assumed["a check of values that nobody knows, as for NaN or overflow, is taken to find nothing"] += 1
        else:
            self.assumed[f"an {str(on_gpu[0].dtype)[6:]} that nobody knows is read back as 0"] += 1

    def _carried(self, name: str, tensors: list[Tensor]) -> None:
        """A collective has run: the virtual NCCL carries what is small, and what other ranks have if they run."""
        known = any(small(tensor) and self._twins.known([tensor]) for tensor in tensors)
        together = self._twins.together
        arrives = together and name.startswith(_FROM_ONE)
        integers = together or (together is not None and name.startswith("c10d::recv"))
        for tensor in tensors:
            if small(tensor):
                self._twins.mark(tensor, known=known or arrives or (integers and not tensor.dtype.is_floating_point))

    def _results(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], out: Any) -> list[Tensor]:
        """Small tensors on the GPU that the operator has written."""
        made = [t for t in tensors_in((out,)) if t.is_cuda and small(t)]
        if not func._schema.is_mutable:
            known = {id(tensor) for tensor in inputs}
            return [tensor for tensor in made if id(tensor) not in known]
        return [*made, *(t for t in _written(func, args, kwargs) if t.is_cuda and small(t))]

    def _compute(self, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Run the operator on twins and write what it says; False if the CPU cannot, or has not all of them."""
        if not all(small(tensor) for tensor in tensors_in((*args, *kwargs.values())) if tensor.is_cuda):
            return False
        twins: dict[int, Tensor] = {}
        try:
            result = self._on_cpu(func, args, kwargs, twins)
        except (RuntimeError, NotImplementedError, IndexError, TypeError, ValueError):
            return False
        for tensor in (t for t in _written(func, args, kwargs) if id(t) in twins):
            if small(tensor):
                self._twins.write(tensor, twins[id(tensor)])
        if not func._schema.is_mutable:
            for made, value in zip(tensors_in((out,)), tensors_in((result,)), strict=False):
                if made.is_cuda and small(made):
                    self._twins.write(made, value)
        return True

    def _replace(self, func: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
        """The results of an operator whose shape depends on known values."""

        def to_gpu(value: Tensor) -> Tensor:
            moved = value.to(device)
            self._twins.mark(moved, known=small(moved))
            return moved

        return tree_map_only(Tensor, to_gpu, self._on_cpu(func, args, kwargs, {}))

    def _on_cpu(self, func: Any, args: Any, kwargs: Any, twins: dict[int, Tensor]) -> Any:
        def twin(value: Any) -> Any:
            if isinstance(value, Tensor):
                if not value.is_cuda:
                    return value
                if id(value) not in twins:
                    twins[id(value)] = self._twins.read(value)
                return twins[id(value)]
            if isinstance(value, torch.device):
                return torch.device("cpu")
            return [twin(v) for v in value] if isinstance(value, (list, tuple)) else value

        options = {name: twin(value) for name, value in kwargs.items()}
        if torch.Tag.nondeterministic_seeded in func.tags:
            options["generator"] = self._generator()
        return func(*[twin(value) for value in args], **options)

    def _generator(self) -> torch.Generator:
        """Random numbers of its own: the program's stay as they would be."""
        if self._random is None:
            self._random = torch.Generator(device="cpu")
            self._random.manual_seed(0)
        return self._random


class _Operator:
    """An operator by name; looked up when it first runs, since most never do."""

    __slots__ = ("_found", "_name")

    def __init__(self, name: str) -> None:
        self._name, self._found = name, None

    def overload(self) -> Any:
        """As `torch.ops` has it."""
        if self._found is None:
            namespace, _, rest = self._name.partition("::")
            base, _, overload = rest.partition(".")
            self._found = getattr(getattr(getattr(torch.ops, namespace), base), overload or "default")
        return self._found


def _registry(library: torch.library.Library) -> Any:
    """What a library registers with; its own methods check more, and take longer."""
    return library.m


def _operators() -> list[str]:
    """All operators but those that only look at what is there: they need no values, and `detach` may not be watched."""
    names = []
    for name in torch._C._dispatch_get_all_op_names():
        if name.partition("::")[0] not in _NAMESPACES or not torch._C._dispatch_has_kernel(name):
            continue
        base, _, overload = name.partition(".")
        arguments = torch._C._get_schema(base, overload).arguments
        written = [a.alias_info.is_write for a in arguments if a.alias_info is not None]
        if not written or any(written) or name == _FROM_DATA:
            names.append(name)
    return names


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Tensors among the arguments that the operator changes."""
    found: list[Any] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            if position < len(args):
                found.append(args[position])
            elif argument.name in kwargs:
                found.append(kwargs[argument.name])
    return list(tensors_in(found))


def _read_by(func: Any, kwargs: dict[str, Any], on_gpu: list[Tensor]) -> list[Tensor]:
    """Tensors on the GPU whose values decide the result."""
    if func._schema.name in _OVERWRITES:
        return on_gpu[1:]
    outs = {id(kwargs[a.name]) for a in func._schema.arguments if a.is_out and a.name in kwargs}
    return [tensor for tensor in on_gpu if id(tensor) not in outs] if outs else on_gpu


def _may_make_cuda(inputs: list[Tensor], kwargs: dict[str, Any]) -> bool:
    """Whether an operator that reads nothing on the GPU may give out something there."""
    device = kwargs.get("device")
    return bool(inputs) or (device is not None and torch.device(device).type == "cuda")
