"""The pytest plugin: limits and baselines for the memory of tests. Loaded with every pytest, so it imports nothing.

    @pytest.mark.limit_peak_memory("4 GiB", device="virtual", gpu="a10g")     fails if the test needs more
    with dnnmem.measure() as m: ...                                           any code, `m.peak_bytes`
    --dnnmem-fail-on-increase=2%                                              fails if a test needs more than accepted

What does the work is in `dnnmem.cli.testing`, which is imported when a test asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dnnmem.cli.testing.fixture import Measurer

MARKER = "limit_peak_memory"
"""The name of the marker."""
_HELP = (
    f"{MARKER}(limit, device='auto', gpu=None): fail if the test needs more memory; device is cpu, fake, virtual, cuda "
    "or auto, gpu a name of `dnnmem devices`"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("dnnmem", "memory of tests (dnnmem)")
    group.addoption("--dnnmem", action="store_true", help="Measure every test and show the largest peaks.")
    group.addoption("--dnnmem-update", action="store_true", help="Accept the peaks of the measured tests.")
    group.addoption(
        "--dnnmem-fail-on-increase", metavar="SHARE", help="Fail measured tests whose accepted peak grew by more: 2%%."
    )
    group.addoption(
        "--dnnmem-baseline", metavar="FILE", help="Where accepted peaks are kept. [default: .dnnmem/pytest.json]"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known; look at the options once, so that a wrong one ends the run at its start."""
    config.addinivalue_line("markers", _HELP)
    if config.getoption("--dnnmem-fail-on-increase") is not None:
        from dnnmem.cli.testing.judge import allowed_increase

        allowed_increase(config)
    if "DNNMEM_PYTEST_RESULT" in os.environ:
        from dnnmem.cli.testing.child import Reporting

        config.pluginmanager.register(Reporting(config), "dnnmem-child")


@pytest.fixture
def dnnmem(request: pytest.FixtureRequest) -> Measurer:
    """Measures code: `with dnnmem.measure() as m: ...`, then `m.peak_bytes`."""
    from dnnmem.cli.testing.fixture import Measurer

    return Measurer(request.node)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Decide where the test runs; one that needs a virtual GPU runs in a process of its own, now."""
    if _is_asked(item):
        from dnnmem.cli.testing.hooks import before_setup

        before_setup(item)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """A fixture of a test that runs on FakeTensors makes some too."""
    if fixturedef.scope != "function" or not _is_asked(request.node):
        return (yield)
    from dnnmem.cli.testing.hooks import making_fixture

    with making_fixture(request.node):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that ran elsewhere does not run here."""
    if not _is_asked(pyfuncitem):
        return None
    from dnnmem.cli.testing.hooks import ran_elsewhere

    return ran_elsewhere(pyfuncitem) or None


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Measure the test's body, then judge it and what it measured by the fixture."""
    if not _is_asked(item) and "dnnmem" not in getattr(item, "fixturenames", ()):
        return (yield)
    from dnnmem.cli.testing.hooks import judge_blocks, measuring_body

    with measuring_body(item):
        result = yield
    judge_blocks(item)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The report of a test that ran elsewhere is the one that was made there."""
    report = yield
    if not _is_asked(item):
        return report
    from dnnmem.cli.testing.hooks import report_from_elsewhere

    return report_from_elsewhere(item, call.when) or report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The largest peaks, and what became of baselines."""
    options = ("--dnnmem", "--dnnmem-update", "--dnnmem-fail-on-increase")
    if any(config.getoption(name) for name in options):
        from dnnmem.cli.testing.summary import write_summary

        write_summary(terminalreporter, config)


def _is_asked(item: pytest.Item) -> bool:
    """Whether the whole test is measured."""
    return item.get_closest_marker(MARKER) is not None or bool(item.config.getoption("--dnnmem"))


def baseline_path(config: pytest.Config) -> Path:
    """Where accepted peaks are kept."""
    named = config.getoption("--dnnmem-baseline")
    return Path(config.invocation_params.dir, named) if named else config.rootpath / ".dnnmem" / "pytest.json"
