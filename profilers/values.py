"""True values for small tensors in a fake run, so that host code that reads them takes the path it really takes.

FakeTensors have shapes but no values; a mask that is all ones, a schedule of drop rates or a step counter is then
unreadable. `SmallValues` runs an operator a second time, for real, when everything it reads is known and small. Values
that cannot be known (anything computed from large activations) get a stated assumption where a number is enough, and an
error where a shape would depend on them.

>>> from torch._subclasses.fake_tensor import FakeTensorMode
>>> with FakeTensorMode(allow_non_fake_inputs=True) as fake, SmallValues(fake) as values:
...     rates = [x.item() for x in torch.linspace(0, 0.2, 3)]
...     kept = torch.arange(6).reshape(2, 3)[1].nonzero().shape
>>> [round(r, 1) for r in rates], kept, values.assumptions.total()
([0.0, 0.1, 0.2], torch.Size([3, 1]), 0)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from dnnmem.profilers.fake_kernels import BY_LENGTHS, REPLACEMENTS
from dnnmem.profilers.gpu_assumptions import TRUTHS
from dnnmem.profilers.tensors import tensors_in

MOST_ELEMENTS = {False: 1 << 18, True: 1 << 12}
"""Largest tensor whose values are kept: integers and booleans (ids, masks), and floating-point ones."""

_INDEX = torch.ops.aten.index.Tensor
_ITEM = torch.ops.aten._local_scalar_dense.default
_DYNAMIC = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_ATTRIBUTE = "_dnnmem_value"
_EQUAL = {"aten::eq": True, "aten::ne": False}
"""What isfinite, isnan and isinf are made of, and its answer for a value and itself."""
_SOUND = "values that nobody knows are taken to be neither infinite nor NaN, and questions about all of them as true"


class _Value:
    """The real twin of a FakeTensor; aliases share `fresh`, which turns false when something unknown is written."""

    __slots__ = ("assumed", "fresh", "tensor")

    def __init__(self, tensor: Tensor, fresh: list[bool], *, assumed: bool = False) -> None:
        self.tensor = tensor
        self.fresh = fresh
        self.assumed = assumed

    def __deepcopy__(self, _memo: object) -> _Value:
        with no_dispatch():
            return _Value(self.tensor.detach().clone(), list(self.fresh), assumed=self.assumed)


class SmallValues(TorchDispatchMode):
    """Keeps the values of small FakeTensors. Enter it inside the FakeTensorMode."""

    def __init__(self, fake: FakeTensorMode) -> None:
        """`fake`: the mode whose tensors get values."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.assumptions: Counter[str] = Counter()
        """How often a value that nobody knows was assumed, by sentence."""
        self._fake = fake
        # A copy of a tensor copies all that the tensor has, its mode too; two of those corrupt torch's memory.
        fake.__deepcopy__ = lambda _memo: fake  # type: ignore[attr-defined]
        self._traits: dict[Any, tuple[bool, bool]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def adopt(self, tensor: Tensor) -> Tensor:
        """A FakeTensor like the real `tensor`, with its values if it is small."""
        fake = self._fake.from_tensor(tensor)
        if _small(tensor):
            setattr(fake, _ATTRIBUTE, _Value(tensor, [True]))
        return fake

    def __torch_dispatch__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` on FakeTensors, and on their values where all of them are known."""
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        inputs = [*tensors_in(args), *tensors_in(kwargs.values())] if kwargs else list(tensors_in(args))
        values = [_value(x) for x in inputs]
        known = all(v is not None for v in values)
        dynamic, mutable = self._traits.get(func) or self._find_traits(func)
        if func in BY_LENGTHS and (lengths := _numbers(args[BY_LENGTHS[func][0]])) is not None:
            place, kernel = BY_LENGTHS[func]
            return kernel(*args[:place], lengths, *args[place + 1 :], **kwargs)
        if dynamic:
            return self._read(func, args, kwargs, inputs, known=known)
        out = REPLACEMENTS.get(func, func)(*args, **kwargs)
        if known and _worth_it(func, inputs, out):
            self._run(func, args, kwargs, out, values)
        elif not known and (truth := _truth(func, args)) is not None:
            _assume(out, truth)
        elif mutable:
            _forget(func, args, kwargs)
        return out

    def _find_traits(self, func: Any) -> tuple[bool, bool]:
        traits = any(tag in func.tags for tag in _DYNAMIC), func._schema.is_mutable
        self._traits[func] = traits
        return traits

    def _read(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], *, known: bool) -> Any:
        """An operator whose result is a value or whose shape depends on one."""
        if known:
            real_args, real_kwargs = _real((args, kwargs))
            self.assumptions.update({_SOUND: 1} if any(_is_assumed(x) for x in inputs) else {})
            with no_dispatch():
                out = func(*real_args, **real_kwargs)
            return tree_map_only(Tensor, self.adopt, out)
        if func is _ITEM and len(inputs) == 1 and not _is_count(inputs[0].dtype):
            kind = inputs[0].dtype
            value = False if kind is torch.bool else 0.0
            name = str(kind).removeprefix("torch.")
            self.assumptions[f"a {name} that the program reads back is taken as {value}"] += 1
            return value
        if func is _INDEX:
            return func(args[0], self._places(args[1]))
        return func(*args, **kwargs)

    def _places(self, indices: Iterable[Tensor | None]) -> list[Tensor | None]:
        """Known masks as the places where they are true, which are the same elements."""
        found: list[Tensor | None] = []
        for index in indices:
            known = _value(index) if index is not None and index.dtype is torch.bool else None
            if known is None:
                found.append(index)
                continue
            with no_dispatch():
                places = known.tensor.nonzero().unbind(1)
            found += [self.adopt(place) for place in places]
        return found

    def _run(self, func: Any, args: Any, kwargs: Any, out: Any, values: list[_Value | None]) -> None:
        real_args, real_kwargs = _real((args, kwargs))
        try:
            with no_dispatch(), torch.no_grad():
                result = func(*real_args, **real_kwargs)
        except (RuntimeError, NotImplementedError, IndexError):
            _forget(func, args, kwargs)
            return
        assumed = any(value is not None and value.assumed for value in values)
        shared = values[0].fresh if func.is_view and values and values[0] is not None else None
        for fake, real in zip(tree_leaves(out), tree_leaves(result), strict=True):
            if isinstance(fake, FakeTensor) and _value(fake) is None:
                setattr(fake, _ATTRIBUTE, _Value(real, shared or [True], assumed=assumed))
                fake.constant = None  # torch's own twin, with which a copy of the tensor fails


def _value(tensor: Tensor) -> _Value | None:
    if not isinstance(tensor, FakeTensor):
        return _Value(tensor, [True]) if _small(tensor) else None
    value: _Value | None = getattr(tensor, _ATTRIBUTE, None)
    return value if value is not None and value.fresh[0] else None


def _numbers(lengths: Any) -> list[int] | None:
    if not isinstance(lengths, Tensor):
        return [*lengths]
    value = _value(lengths)
    with no_dispatch():
        return None if value is None else [int(n) for n in value.tensor.tolist()]


def _real(tree: Any) -> Any:
    return tree_map_only(FakeTensor, lambda x: getattr(x, _ATTRIBUTE).tensor, tree)


def _truth(func: Any, args: Any) -> bool | None:
    """The answer to a question about what nobody knows, None if none is assumed: nothing is infinite or missing."""
    name = func._schema.name
    if name in TRUTHS and len(args) == 1:  # along a dimension it says which to choose: real runs know
        return TRUTHS[name]
    if name not in _EQUAL:
        return None
    itself, infinite = args[0] is args[1], isinstance(args[1], float) and math.isinf(args[1])
    return _EQUAL[name] is itself if itself or infinite else None


def _assume(out: Any, truth: bool) -> None:  # noqa: FBT001  # a value, not a flag
    if isinstance(out, FakeTensor) and out.dtype is torch.bool and _small(out):
        with no_dispatch():
            values = torch.full(tuple(out.shape), truth)
        setattr(out, _ATTRIBUTE, _Value(values, [True], assumed=True))


def _is_assumed(tensor: Tensor) -> bool:
    value = _value(tensor)
    return value is not None and value.assumed


def _small(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.numel() <= MOST_ELEMENTS[tensor.dtype.is_floating_point]


def _is_count(kind: torch.dtype) -> bool:
    return not (kind.is_floating_point or kind is torch.bool)


def _worth_it(func: Any, inputs: list[Tensor], out: Any) -> bool:
    """True for small results that host code might read; random floats and empty blocks are not among them."""
    outputs = list(tensors_in((out,)))
    if not all(_small(x) for x in outputs) or not (outputs or func._schema.is_mutable):
        return False
    if torch.Tag.nondeterministic_seeded in func.tags:
        return all(_is_count(x.dtype) or x.dtype is torch.bool for x in outputs)
    return bool(inputs) or not func._schema.name.startswith(("aten::empty", "aten::new_empty"))


def _forget(func: Any, args: Any, kwargs: Any) -> None:
    """What `func` writes is no longer known."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            _stale(value)
    for argument in func._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name in kwargs:
            _stale(kwargs[argument.name])


def _stale(value: Any) -> None:
    for tensor in tensors_in((value,)):
        known = getattr(tensor, _ATTRIBUTE, None) if isinstance(tensor, FakeTensor) else None
        if known is not None:
            known.fresh[0] = False
