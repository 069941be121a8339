"""Activation compression done: what autograd saves of a forward pass is encoded at once, and decoded when needed.

    forward    x -> op saves x      hook: codes of x; x itself goes when the model is done with it
    backward   op needs x           hook: x is made of its codes, for as long as a gradient uses it

Hooks for saved tensors lie around the whole model, so its code stays as it is. Parameters and what is cast from them,
inputs, buffers, small tensors, statistics of norms and attention, and what a loss saves stay exact. A storage that
several ops save is encoded once. What is computed again is made while no hook listens, so only inputs of such blocks
are encoded. A function mode tells which function is saving: masks and projections are for some.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from dnnmem.estimator.encoding import MIN_BYTES, Encoding
from dnnmem.estimator.passes.compression import check_fits
from dnnmem.estimator.plan import Compression, Plan
from dnnmem.profilers.apply.codes import Packed, Window, decode, encode
from dnnmem.profilers.apply.saved_parts import pack_part, unpack_part
from dnnmem.profilers.tensors import map_tensors

RELUS, LINEARS, POOL = frozenset({"relu", "relu_"}), frozenset({"linear", "addmm"}), "max_pool2d"
LOSSES = frozenset({"cross_entropy", "log_softmax", "nll_loss", "kl_div", "binary_cross_entropy_with_logits"})
_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})
_CAST, _LEAF = "ToCopyBackward0", "torch::autograd::AccumulateGrad"
_PADDING = 32
"""Attention's kernels round the length of their statistics up to this."""


def to_model(model: nn.Module, plan: Plan) -> nn.Module:
    """`model` whose forward pass saves what `plan.compression` leaves; names and state stay as they are.

    Raises `UnsupportedError` for recomputation that keeps some ops of a block, and for activations on the host.
    """
    if plan.compression == Compression():
        return model
    check_fits(plan)
    forward = model.forward
    compressing = partial(_run, weakref.ref(model), _State(plan=plan.compression), forward)
    model.forward = update_wrapper(compressing, forward)  # its parameters stay known
    return model


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Kept:
    """A storage that is encoded."""

    packed: Packed
    made: StorageWeakRef | None = None
    """What was made of it last; it may be gone."""


class _View(NamedTuple):
    """What autograd holds in the place of a tensor."""

    kept: _Kept
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(slots=True, eq=False)
class _State:
    """What a model's forward pass knows of itself."""

    plan: Compression
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict)
    exact: set[int] = field(default_factory=set)
    """Storages that are not touched."""
    kept: dict[tuple[int, str], tuple[StorageWeakRef, weakref.ref[_Kept]]] = field(default_factory=dict)
    """By storage and kind of encoding; the reference keeps a storage's address from being given to another one."""
    function: str = ""
    """What torch is asked for."""
    window: Window | None = None
    """Of the max-pooling that is asked for."""
    rows: set[tuple[int, ...]] = field(default_factory=set)
    """Lead shapes of what the function saved of four dimensions: attention's queries and outputs, keys and values."""


def _run(model: weakref.ref[nn.Module], state: _State, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    state.exact = {storage._cdata for storage in _storages(model(), (args, kwargs))}
    hooks = saved_tensors_hooks(partial(pack_part, partial(_pack, state)), partial(unpack_part, _unpack))
    with hooks, _Watch(state):
        output = forward(*args, **kwargs)
    state.kept.clear()
    return output


def _storages(model: nn.Module | None, given: Any) -> Iterator[torch.UntypedStorage]:
    """Those of parameters, buffers and inputs."""
    tensors: list[Tensor] = [] if model is None else [*model.parameters(), *model.buffers()]
    map_tensors(given, tensors.append)
    return (tensor.untyped_storage() for tensor in tensors if type(tensor) in (Tensor, nn.Parameter))


class _Watch(TorchFunctionMode):
    """Notes which function is running."""

    def __init__(self, state: _State) -> None:
        super().__init__()
        self.state = state

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        with _noted(self.state, getattr(func, "__name__", ""), args, kwargs or {}):
            return func(*args, **(kwargs or {}))


@contextmanager
def _noted(state: _State, name: str, args: Any, kwargs: Any) -> Iterator[None]:
    state.function = name
    state.window = _window(*args, **kwargs) if name == POOL else None
    state.rows.clear()
    try:
        yield
    finally:
        state.function, state.window = "", None


def _window(image: Tensor, kernel_size: Any, *others: Any, **named: Any) -> Window:
    """The window of a call of max-pooling."""
    given = {"stride": None, "padding": 0, "dilation": 1}
    given.update(zip(given, others, strict=False))
    given.update({name: named[name] for name in given if name in named})
    return Window(
        kernel=_pair(kernel_size), stride=_pair(given["stride"] or kernel_size), padding=_pair(given["padding"]),
        dilation=_pair(given["dilation"]), width=image.shape[-1],
    )  # fmt: skip


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _pack(state: _State, tensor: Tensor) -> Tensor | _View:
    with torch.no_grad():
        encoding = _encoding(state, tensor)
        if tensor.dim() == 4:
            state.rows.add(tuple(tensor.shape[:3]))
        if encoding is None:
            return tensor
        storage = tensor.untyped_storage()
        key = storage._cdata, encoding.kind
        known = state.kept.get(key)
        kept = known[1]() if known else None
        if kept is None:
            kept = _Kept(packed=_packed(state, encoding, tensor))
            state.kept[key] = StorageWeakRef(storage), weakref.ref(kept)
        return _View(kept, tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _packed(state: _State, encoding: Encoding, tensor: Tensor) -> Packed:
    """The whole storage, encoded."""
    device = tensor.device
    if device not in state.generators:
        state.generators[device] = torch.Generator(device=device)
        state.generators[device].manual_seed(torch.initial_seed())
    if encoding.kind == "window":
        return encode(encoding, tensor.detach(), state.generators[device], window=state.window)
    flat = torch.empty(0, dtype=tensor.dtype, device=device).set_(tensor.untyped_storage())
    columns = tensor.shape[-1] if encoding.kind == "rows" else 1
    return encode(encoding, flat, state.generators[device], columns=columns)


def _unpack(packed: Tensor | _View) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    kept = packed.kept
    storage = None if kept.made is None else torch.UntypedStorage._new_with_weak_ptr(kept.made.cdata)
    dtype = torch.bool if kept.packed.encoding.kind == "sign" else packed.dtype
    with torch.no_grad():
        if storage is None:
            storage = decode(kept.packed).untyped_storage()
            kept.made = StorageWeakRef(storage)
        empty = torch.empty(0, dtype=dtype, device=kept.packed.device)
        return empty.set_(storage, packed.offset, packed.size, packed.stride)


def _encoding(state: _State, tensor: Tensor) -> Encoding | None:
    """How a tensor is kept; None = as it is."""
    storage = tensor.untyped_storage()
    if type(tensor) is not Tensor or storage.nbytes() < MIN_BYTES or storage._cdata in state.exact:
        return None
    if state.function in LOSSES or _is_parameter(tensor):
        return None
    pooled = state.function == POOL
    if tensor.dtype not in _FLOATS or (pooled and state.plan.masks):
        return _exact(tensor, pooled=pooled) if state.plan.masks else None
    if tensor.dim() == 0 or tensor.shape[-1] == 1 or _is_statistic(state, tensor):
        return None
    return _inexact(state, tensor)


def _exact(tensor: Tensor, *, pooled: bool) -> Encoding | None:
    """What loses nothing: truth values, max-pooling's places and its input, of which the shape counts."""
    if tensor.dtype is torch.bool:
        return Encoding(kind="bool")
    return Encoding(kind="window" if tensor.dtype is torch.int64 else "shape") if pooled else None


def _inexact(state: _State, tensor: Tensor) -> Encoding | None:
    plan = state.plan
    if state.function in RELUS and (plan.masks or plan.bits):
        return Encoding(kind="sign")
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes() and tensor.is_contiguous()
    if plan.projection is not None and state.function in LINEARS and whole:
        return Encoding(kind="rows", share=plan.projection)
    return None if plan.bits is None else Encoding(kind="codes", bits=plan.bits, group=plan.group)


def _is_parameter(tensor: Tensor) -> bool:
    """True for a parameter, or a view of one, or one in another type."""
    base = tensor if tensor._base is None else tensor._base
    if isinstance(base, nn.Parameter):
        return True
    made = base.grad_fn
    if made is None or made.name() != _CAST:
        return base.is_leaf and base.requires_grad
    return any(before is not None and before.name() == _LEAF for before, _ in made.next_functions)


def _is_statistic(state: _State, tensor: Tensor) -> bool:
    """True for what attention saves of each row: (batch, heads, length) beside queries of four dimensions."""
    if tensor.dim() != 3 or tensor.grad_fn is not None:
        return False
    *lead, found = tensor.shape
    return any(lead == [*some] and length <= found < length + _PADDING for *some, length in state.rows)
