"""How the user's code is imported: as their own program would, but never as `__main__`, and with errors in their words.

The file's folder comes first on `sys.path`, so that `import my_layers` beside it works; the module gets a name of its
own, so that a `model.py` of the user cannot shadow anything. What goes wrong in there is a `ModelError` with their
lines only; a name that leads nowhere is a `UsageError` with the nearest names.

>>> load_file("no/such/model.py")
Traceback (most recent call last):
dnnmem.estimator.errors.UsageError: no/such/model.py does not exist
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, TypeVar

from dnnmem.estimator.errors import DnnmemError, ModelError, UsageError
from dnnmem.profilers.targets.arguments import near
from dnnmem.profilers.targets.frames import device_hint, trim_traceback

P = ParamSpec("P")
R = TypeVar("R")

_COUNT = itertools.count()


def load_file(path: str) -> ModuleType:
    """A new module from a Python file. Raises `UsageError` if there is no such file, `ModelError` if it cannot run."""
    file = Path(path)
    _check_file(path, file)
    file = file.resolve()
    _put_first(str(file.parent))
    name = f"dnnmem_target_{next(_COUNT)}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported as Python", hint="name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    _import(path, lambda: spec.loader.exec_module(module), (str(file.parent),))  # type: ignore[union-attr]
    return module


def load_module(name: str) -> ModuleType:
    """An importable module by its dotted name, the current folder first. Raises as `load_file` does."""
    _put_first(str(Path.cwd()))
    return _import(name, lambda: _import_named(name), (str(Path.cwd()),))


def fresh_copy(module: ModuleType) -> ModuleType:
    """The same module run once more in the current context, beside the first one, which stays as it is."""
    spec = module.__spec__
    if spec is None or spec.loader is None:
        return module
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def user_files(module: ModuleType) -> tuple[str, ...]:
    """Folder of a module's code: of the file, or of its top-level package."""
    if module.__file__ is None:
        return ()
    file = Path(module.__file__).resolve()
    depth = module.__name__.count(".") - 1 + hasattr(module, "__path__")
    folder = file.parents[max(depth, 0)]
    return (str(file),) if folder.name in {"site-packages", "dist-packages"} else (str(folder),)


def guarded(label: str, function: Callable[P, R], files: tuple[str, ...]) -> Callable[P, R]:
    """The function with its exceptions turned into `ModelError`s that show the user's own lines.

    What FakeTensorMode raises for an operator that it cannot trace passes unchanged: the device has another way then.
    """
    hint = f"mend {label}" if files else "change what is given with --arg"

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except DnnmemError:
            raise
        except (Exception, SystemExit) as error:
            if type(error).__module__ == "torch._subclasses.fake_tensor":
                raise
            way_out = device_hint(str(error)) or hint
            raise ModelError(f"{label} failed:\n{trim_traceback(error, files)}", hint=way_out) from error

    return call


def _import(label: str, run: Callable[[], R], files: tuple[str, ...]) -> R:
    try:
        return run()
    except DnnmemError:
        raise
    except SyntaxError as error:
        raise ModelError(
            f"{label} is not valid Python:\n{trim_traceback(error, files)}", hint="mend that line"
        ) from error
    except ModuleNotFoundError as error:
        told = trim_traceback(error, files)
        hint = f"install {error.name} for {sys.executable}, the Python that runs dnnmem"
        raise ModelError(f"{label} imports what is not installed:\n{told}", hint=hint) from error
    except SystemExit as error:
        hint = 'put what the script does under `if __name__ == "__main__":`'
        raise ModelError(f"{label} exits while it is imported:\n{trim_traceback(error, files)}", hint=hint) from error
    except Exception as error:
        told = trim_traceback(error, files)
        raise ModelError(f"{label} failed while it was imported:\n{told}", hint=f"check `python {label}`") from error


def _check_file(path: str, file: Path) -> None:
    if file.is_dir():
        scripts = sorted(p.name for p in file.glob("*.py"))[:6]
        raise UsageError(
            f"{path} is a folder, not a Python file",
            hint=f"name a file in it: {', '.join(scripts)}" if scripts else "name the .py file that defines the model",
        )
    if not file.exists():
        folder = file.parent
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        hint = near(file.name, names) or "check the path; `dnnmem init` writes a model.py to start from"
        raise UsageError(f"{path} does not exist", hint=hint)
    if file.suffix != ".py":
        raise UsageError(
            f"{path} is a {file.suffix or 'suffix-less'} file; a target is Python code (.py)",
            hint="name the .py file that builds the model; `dnnmem init` writes one to start from",
        )


def _put_first(folder: str) -> None:
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)


def _import_named(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports another that is not
        raise UsageError(f"there is no module {error.name!r} in this environment", hint=_module_hint(name)) from error


def _module_hint(name: str) -> str:
    top = name.split(".", maxsplit=1)[0]
    close = near(top, [m.name for m in pkgutil.iter_modules()])
    return (
        close or "a target is model.py, model.py:symbol, package.module:symbol, torchvision:, timm: or hf: and a name"
    )
