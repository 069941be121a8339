"""What `model.py:symbol` and `package.module:symbol` name: a module class, a function that builds a model, or a model.

A model that a file builds at its top level cannot be built again by calling it; the file is run once more instead, in
the context that the device chose, so that its tensors are fake ones under FakeTensorMode.

>>> from types import SimpleNamespace
>>> find_symbol("model.py", SimpleNamespace(Net=1), "Nett")
Traceback (most recent call last):
dnnmem.estimator.errors.UsageError: model.py has no 'Nett'
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import nn

from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.step import describe
from dnnmem.profilers.targets.arguments import near
from dnnmem.profilers.targets.hooks import EXAMPLE, Hooks, find_hooks
from dnnmem.profilers.targets.load import fresh_copy


def symbol_hooks(label: str, module: ModuleType, symbol: str, files: tuple[str, ...]) -> Hooks:
    """The hooks of a target named by one symbol; raises `UsageError` for one that is missing or builds nothing."""
    found = find_symbol(label, module, symbol)
    if isinstance(found, nn.Module):
        return find_hooks(label, module, files, lambda: _attribute(fresh_copy(module), symbol), symbol)
    if callable(found) and (not isinstance(found, type) or issubclass(found, nn.Module)):
        return find_hooks(label, module, files, found, symbol)
    kind = f"the class {found.__name__}" if isinstance(found, type) else describe(found)
    raise UsageError(
        f"{symbol} in {label} is {kind}; a target is a torch.nn.Module class, a function that returns one, or one",
        hint=_offer(label, module) or EXAMPLE,
    )


def module_hooks(label: str, module: ModuleType, files: tuple[str, ...]) -> Hooks:
    """The hooks of a file named without a symbol: its `make_model`, or `UsageError` with what it has instead."""
    make_model: Callable[..., Any] | None = getattr(module, "make_model", None)
    if make_model is None:
        script = f"a script that trains by itself runs unchanged: dnnmem run -- {label}"
        hint = "\n".join(filter(None, (_offer(label, module), script, EXAMPLE)))
        raise UsageError(f"{label} has no make_model()", hint=hint)
    if not callable(make_model):
        raise UsageError(f"make_model in {label} is {describe(make_model)}, not a function", hint=EXAMPLE)
    return find_hooks(label, module, files, make_model, "make_model")


def find_symbol(label: str, module: ModuleType | SimpleNamespace, symbol: str) -> Any:  # any object
    """The object that a dotted name stands for; raises `UsageError` with the nearest names if there is none."""
    try:
        return _attribute(module, symbol)
    except AttributeError as error:
        names = [name for name in vars(module) if not name.startswith("_")]
        hint = near(symbol, names) or f"it has {', '.join(names[:12]) or 'nothing'}"
        raise UsageError(f"{label} has no {symbol!r}", hint=hint) from error


def _attribute(owner: object, symbol: str) -> Any:  # any object
    return reduce(getattr, symbol.split("."), owner)


def _offer(label: str, module: ModuleType) -> str:
    own = [
        n
        for n, x in vars(module).items()
        if isinstance(x, type) and issubclass(x, nn.Module) and x.__module__ == module.__name__
    ]
    return (
        f"name one of its models: {label}:{own[0]} --input 8,64:fp32 (it has {', '.join(own[:8])}); or" if own else ""
    )
