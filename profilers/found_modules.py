"""Module paths for code that nobody has prepared: models are found where they are first called.

model(x)        the first one: its paths are bare                              fc1, fc2
criterion(y)    others: headed by their class, and a number from the second    CrossEntropyLoss, CrossEntropyLoss_2
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from weakref import WeakKeyDictionary, ref

from torch import nn

from dnnmem.estimator.trace import Module
from dnnmem.profilers.capture import describe_modules
from dnnmem.profilers.modules import LOSS, ModuleTracker

Path = tuple[str, ...]


class FoundModules(ModuleTracker):
    """Follows which module runs, whichever model it belongs to."""

    def __init__(self, on_model: Callable[[nn.Module, Path], None]) -> None:
        """`on_model` is told of each model and the head of its paths, before it runs for the first time."""
        super().__init__(nn.Module())
        self._on_model = on_model
        self._known: WeakKeyDictionary[nn.Module, Path] = WeakKeyDictionary()
        self._models: list[ref[nn.Module]] = []
        self._heads: Counter[str] = Counter()
        self._described: dict[Path, Module] = {}

    def described(self) -> tuple[Module, ...]:
        """Every module of the models that ran."""
        return tuple(self._described.values())

    def _enter_module(self, module: nn.Module, _args: object) -> None:
        if module not in self._known and not self._stack:
            self._find(module)
        path = self._known.get(module)
        if path is None:  # made while another one runs
            path = self._stack[-1] if self._stack else LOSS
        self._stack.append(path)

    def _find(self, model: nn.Module) -> None:
        head: Path = ()
        if self._models:
            name = type(model).__name__
            self._heads[name] += 1
            head = (name if self._heads[name] == 1 else f"{name}_{self._heads[name]}",)
        self._models.append(ref(model))
        for name, module in model.named_modules():
            self._known.setdefault(module, (*head, *_path(name)))
        for name, parameter in model.named_parameters():
            self._owners[id(parameter)] = (*head, *_path(name)[:-1])
        for one in describe_modules(model):
            path = (*head, *one.path)
            self._described.setdefault(path, Module(path=path, type=one.type, source=one.source))
        self._on_model(model, head)


def _path(name: str) -> Path:
    return tuple(name.split(".")) if name else ()
