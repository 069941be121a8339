"""What all tests share: the list of modules, no network, few threads, and GPU tests only where a GPU is.

A test with an argument `module` runs once for each module of dnnmem, as a `Module` of name and file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "dnnmem": "src/dnnmem",
    "dnnmem.cli": "cli",
    "dnnmem.estimator": "estimator",
    "dnnmem.profilers": "profilers",
}
"""Where the package lies in the checkout; an editable install hides it from pkgutil."""

# Child processes inherit these too. A test that wants another value sets it itself.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)
os.environ.pop("FORCE_COLOR", None)
os.environ.pop("NO_COLOR", None)

hypothesis.settings.register_profile("dnnmem", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("dnnmem")


class Module(NamedTuple):
    """One source file."""

    name: str
    """Dotted: `dnnmem.estimator.trace`."""
    path: Path
    """Its file."""


def _modules() -> list[Module]:
    found = []
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found.append(Module(".".join((package, *parts)).removesuffix(".__init__"), path))
    return sorted(found)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "module" in metafunc.fixturenames:
        metafunc.parametrize("module", _modules(), ids=lambda module: module.name)


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    """All of them."""
    return _modules()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in set(marked)]


@pytest.fixture(scope="session")
def root() -> Path:
    """The top folder of the checkout."""
    return ROOT
