"""Calls a function right after torch was imported, whoever imports it.

What a script sets before it loads torch (`os.environ`, `sys.path`) then works as it does without dnnmem.

>>> called = []
>>> with after_import("colorsys", lambda: called.append(True)):
...     sys.modules.pop("colorsys", None) and None
...     import colorsys
>>> called
[True]
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def call_when_loaded(name: str, call: Callable[[], None]) -> None:
    """Call `call` now if `name` is imported already, else once it is."""
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _Finder(name, call))


@contextmanager
def after_import(name: str, call: Callable[[], None]) -> Iterator[None]:
    """Call `call` once `name` has been imported for the first time within the block."""
    finder = _Finder(name, call)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


def when_loaded(name: str, call: Callable[[], None]) -> None:
    """Call `call` now if the module `name` is loaded, else once it has been imported."""
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _Finder(name, call))


class _Finder(MetaPathFinder):
    """Finds one module as all others would, and wraps its loader."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.name, self.call, self.busy = name, call, False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The real spec of the one module, with a loader that tells when it is done."""
        del path, target
        if fullname != self.name or self.busy:
            return None
        self.busy = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.busy = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Telling(spec.loader, self.done)
        return spec

    def done(self) -> None:
        """The module was loaded."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self.call()


class _Telling(Loader):
    """A loader that says when it has run the module."""

    def __init__(self, loader: Loader, done: Callable[[], None]) -> None:
        self.loader, self.done = loader, done

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the real loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as the real loader does, put that loader back, and tell."""
        self.loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.done()
