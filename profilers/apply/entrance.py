"""A model that a training loop enters by a method of its own is entered by a call: what plans do hangs on calls.

    model(x)          hooks -> forward(x)                           as always
    model.losses(x)   hooks -> forward -> losses(x)                 a method that runs modules of the model
    model.step(x)     step(x) calls self(x) -> hooks -> forward     a method that calls the model itself: left alone

Without the call nothing happens that hangs on it: replicas would not send their gradients, autocast would not begin.
Which methods run modules is read from their source. Where a step reaches modules past all of these, `only_by_calls`
says so before replicas drift apart.

>>> from collections import UserList
>>> enters(UserList, "append", frozenset({"data"})), enters(UserList, "append", frozenset({"head"}))
(True, False)
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache, wraps
from types import FunctionType, MethodType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dnnmem.estimator.errors import UsageError

_STATE = "_dnnmem_entrance"
_WAY_OUT = (
    "call the model, `model(...)`, or do all that the step does with its modules in one method of it that takes the "
    "batch"
)


class _Entrance:
    """Whether a model is running, and which method its next call is to run instead of `forward`."""

    def __init__(self, *, once: bool) -> None:
        self.waiting: Callable[..., Any] | None = None
        self.depth = 0
        self.once = once


def by_calls(model: nn.Module, *, once: bool) -> nn.Module:
    """`model`, whose methods that run its modules do so as a call of it; in place, and names stay.

    With `once` a method that is given what the model has made raises `UsageError`: a plan's hooks on inputs and outputs
    (casts, shares of a gradient) would not hold for what that method uses.
    """
    names = dict.fromkeys(_methods(type(model)))
    if not names or _STATE in model.__dict__ or not isinstance(model.forward, MethodType):
        return model
    model.__dict__[_STATE] = _Entrance(once=once)
    inner = model.forward.__func__

    @wraps(inner)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state: _Entrance = self.__dict__[_STATE]
        body, state.waiting = state.waiting or inner, None
        state.depth += 1
        try:
            return body(self, *args, **kwargs)
        finally:
            state.depth -= 1

    model.forward = MethodType(forward, model)
    for name in names:
        model.__dict__[name] = MethodType(_entering(getattr(type(model), name)), model)
    return model


def only_by_calls(model: nn.Module, parameters: bool) -> None:  # noqa: FBT001  (what is watched: that, or modules)
    """Raise `UsageError` if the model's parameters get gradients, or its modules run, before it was called once."""
    watched: list[Any] = []
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        if parameters:
            watched += [p.register_post_accumulate_grad_hook(lambda _: _refuse(model)) for p in own]
        elif own and module is not model:
            watched.append(module.register_forward_pre_hook(lambda _, __: _refuse(model)))

    def called(*_: Any) -> None:
        while watched:
            watched.pop().remove()

    watched.append(model.register_forward_pre_hook(called, prepend=True))


@cache
def enters(owner: type, name: str, held: frozenset[str]) -> bool:
    """Whether method `name` uses one of the attributes in `held` (modules, parameters), and does not call the model.

    False too where that cannot be told: there is no source, or the model itself is handed on.
    """
    found = set(_uses(owner, name, set()))
    return bool(found & held or found & {"forward", "[]"}) and not found & {"()", "?"}


def _refuse(model: nn.Module) -> NoReturn:
    raise UsageError(
        f"the step uses modules of {_name(model)} but does not call it; what the plan does hangs on its calls, "
        "so that ranks would neither gather parameters nor send gradients",
        hint=_WAY_OUT,
    )


def _refuse_second(model: nn.Module, name: str) -> NoReturn:
    raise UsageError(
        f"the step gives {_name(model)}.{name} what the model has made, so that it enters the model twice; the "
        "plan's precision and accumulation hold for one call",
        hint=_WAY_OUT,
    )


def _name(model: nn.Module) -> str:
    return type(model).__name__.removeprefix("FSDP")  # fully_shard makes a class of that name


def _held(model: nn.Module) -> frozenset[str]:
    return frozenset({*model._modules, *model._parameters})


def _methods(owner: type) -> Iterator[str]:
    """Public methods that are the model's own, not those that every module has."""
    for base in owner.__mro__[: owner.__mro__.index(nn.Module)]:
        for name, value in vars(base).items():
            if isinstance(value, FunctionType) and not name.startswith("_") and not hasattr(nn.Module, name):
                yield name


def _entering(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def entering(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state: _Entrance = self.__dict__[_STATE]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        owner: Any = type(self)
        again = state.depth or torch._C._current_graph_task_id() != -1  # the model runs, or recomputes
        if again or not given or not enters(owner, method.__name__, _held(self)):
            return method(self, *args, **kwargs)
        if any(t.grad_fn is not None for t in given):
            if state.once:
                _refuse_second(self, method.__name__)
            return method(self, *args, **kwargs)
        state.waiting = method
        try:
            return self(*args, **kwargs)
        finally:
            state.waiting = None

    return entering


def _uses(owner: type, name: str, seen: set[str]) -> Iterator[str]:
    """Attributes of itself that a method uses, and those that it calls; "()" = it calls itself, "?" = unknown."""
    if name in seen:
        return
    seen.add(name)
    function = inspect.unwrap(getattr(owner, name))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        yield "?"
        return
    itself = next(iter(inspect.signature(function).parameters), "")
    used = list(_used(tree, itself))
    yield from used
    for other in used:
        if other != "forward" and isinstance(inspect.getattr_static(owner, other, None), FunctionType):
            yield from _uses(owner, other, seen)


def _used(tree: ast.AST, itself: str) -> Iterator[str]:
    known: set[int] = set()
    for node in ast.walk(tree):  # outer ones first
        inner = getattr(node, "func", None) or getattr(node, "value", None)
        if isinstance(inner, ast.Name) and inner.id == itself:
            known.add(id(inner))
            if isinstance(node, ast.Attribute):
                yield node.attr
            else:
                yield {ast.Call: "()", ast.Subscript: "[]"}.get(type(node), "?")
        elif isinstance(node, ast.Name) and node.id == itself and id(node) not in known:
            yield "?"
