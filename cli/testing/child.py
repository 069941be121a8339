"""One test in a pytest of its own: on a virtual GPU, or under the recorder. Its reports come back as they are.

    parent    python -m pytest FILE::TEST, DNNMEM_PYTEST_RESULT=FILE in its environment
    child     FILE: {"reports": [...], "entries": baseline's text, "sources": ...}

The child gets this run's root, settings file, plugins and options, but no `addopts`: they may ask for workers, reports
and coverage that the parent already has.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.baseline import Entry
from dnnmem.estimator.baseline_file import from_text, to_text
from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import ModelError, UnsupportedError
from dnnmem.profilers.children import end, follow, start
from dnnmem.profilers.virtual_gpu.launch import DEFAULT_GPU, prepare

RESULT = "DNNMEM_PYTEST_RESULT"
"""Variable of a child: where its result goes."""
DEVICE = "DNNMEM_PYTEST_DEVICE"
"""Variable of a child: `virtual` and the GPU's name, or `cuda`."""
RECORD = "DNNMEM_PYTEST_RECORD"
"""Variable of a child that records, so that modules are known; its peaks are not those of the bare test."""
_MINE = (RESULT, DEVICE, RECORD)
_LAST_LINES = 20
_OWN = ("file_or_dir", "xmlpath", "collectonly", "usepdb", "trace", "numprocesses", "dist", "tx")
"""Options that a child does not take over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What became of a test in a child."""

    reports: Mapping[str, Mapping[str, Any]]
    """Serialised, by phase."""
    entries: Mapping[str, Entry] = field(default_factory=dict)
    """What was measured, by target."""


@dataclass(slots=True)
class Role:
    """What this process is, if it is a child."""

    path: Path | None = None
    """Where the result goes."""
    device: str = ""
    """Device and GPU that it was started on."""
    record: bool = False
    """Whether it records."""
    entries: list[Entry] = field(default_factory=list)
    """What it has recorded."""


ROLE = Role()
"""This process's role."""


def run_child(item: pytest.Item, *, device: str, gpu: Device | None, record: bool = False) -> Ran:
    """Run `item` in a child. Raises a `DnnmemError` if it brings back no reports."""
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with tempfile.TemporaryDirectory(prefix="dnnmem-pytest-") as name:
        folder = Path(name)
        told, error_file = folder / "result.json", folder / "error.json"
        (folder / "options.json").write_text(json.dumps(_plain_options(item.config)))
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.pop("PYTEST_ADDOPTS", None)
        if device == "virtual" and not ROLE.device.startswith("virtual"):
            base = environment
            launch = prepare(gpu, base, cache=cache_folder(os.environ), error_file=error_file)
            environment = dict(launch.environment)
        shown = gpu.name if gpu else DEFAULT_GPU if device == "virtual" else ""
        environment |= {RESULT: str(told), DEVICE: f"{device} {shown}".strip()} | ({RECORD: "1"} if record else {})
        child = start([sys.executable, "-m", "pytest", *_words(item)], environment)
        try:
            assert child.stdout is not None  # noqa: S101 - a pipe was asked for
            follow(child.stdout, last.append).join()
            code = child.wait()
        finally:
            end(child)
        if error_file.exists():
            said = json.loads(error_file.read_text())
            raise UnsupportedError(said["message"], hint=said["hint"])
        if not told.exists():
            shown = "\n".join(last) or "it printed nothing"
            raise ModelError(f"the process of this test ended with {code} and no result; its last lines:\n{shown}")
        return _read(json.loads(told.read_text()))


def _words(item: pytest.Item) -> list[str]:
    config = item.config
    words = [f"{item.path}::{item.nodeid.partition('::')[2]}", f"--rootdir={config.rootpath}"]
    words += [
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        "-p",
        "dnnmem",
        f"--import-mode={config.option.importmode}",
    ]
    if config.inipath is not None:
        words += ["-c", str(config.inipath)]
    for plugin in config.option.plugins or ():
        if plugin not in {"dnnmem", "no:dnnmem", "xdist", "no:cacheprovider"} and "xdist" not in plugin:
            words += ["-p", plugin]
    for setting in config.option.override_ini or ():
        words += ["-o", setting]
    return words


def _plain_options(config: pytest.Config) -> dict[str, Any]:
    """Options that travel: the project's own among them, which a command line built here does not know."""
    plain = (str, int, float, bool, type(None))
    found = {name: value for name, value in vars(config.option).items() if isinstance(value, plain)}
    return {name: value for name, value in found.items() if name not in _OWN}


def _read(data: Mapping[str, Any]) -> Ran:
    entries = {}
    for entry in from_text(data["entries"], "a child's result").values():
        sources = {(module, kind): words for module, kind, words in data["sources"].get(entry.key.target, ())}
        entries[entry.key.target] = replace(entry, sources=sources)
    return Ran(reports={report["when"]: report for report in data["reports"]}, entries=entries)


class Reporting:
    """In a child: keeps its reports, and writes them at the end with what was recorded."""

    def __init__(self, config: pytest.Config) -> None:
        """Take the role over from the environment, so that processes of the test do not."""
        self._config = config
        self._reports: list[dict[str, Any]] = []
        told = {name: os.environ.pop(name, "") for name in _MINE}
        ROLE.path, ROLE.device, ROLE.record = Path(told[RESULT]), told[DEVICE], bool(told[RECORD])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        """Let options be those of the parent, for whoever asks from now on."""
        assert ROLE.path is not None  # noqa: S101 - set above
        for name, value in json.loads((ROLE.path.parent / "options.json").read_text()).items():
            if hasattr(self._config.option, name):
                setattr(self._config.option, name, value)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a report."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        if data is not None:
            self._reports.append(data)

    def pytest_sessionfinish(self) -> None:
        """Write the result, whole."""
        if not self._reports or ROLE.path is None:
            return  # collected nothing: the output says why
        sources = {
            entry.key.target: [(*place, words) for place, words in entry.sources.items()] for entry in ROLE.entries
        }
        data = {"reports": self._reports, "entries": to_text(ROLE.entries), "sources": sources}
        partial = ROLE.path.with_suffix(".tmp")
        partial.write_text(json.dumps(data, default=str))
        partial.replace(ROLE.path)
