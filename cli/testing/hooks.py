"""What happens to a test that is measured, phase by phase.

device      setup                              call                        judged
cpu, cuda   as ever                            body is measured            here
fake        fixtures of its own make fakes     body is measured            here
virtual     a child runs all of it             nothing                     in the child, whose reports are taken over
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn

import pytest

from dnnmem.cli.testing.asked import Asked, choose, find_gpu, needs_torch, read_marker
from dnnmem.cli.testing.child import ROLE, Ran, run_child
from dnnmem.estimator.baseline import Entry
from dnnmem.estimator.errors import DnnmemError, UsageError

if TYPE_CHECKING:
    from dnnmem.estimator.device import Device
    from dnnmem.profilers.faking import Faking


@dataclass(slots=True)
class State:
    """What is known of a measured test while it runs."""

    asked: Asked
    """What it asks for."""
    faking: Faking | None = None
    """Its fake run, on `fake`."""
    ran: Ran | None = None
    """What became of it elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a block of a test is measured."""

    device: str
    """`cpu`, `fake`, `virtual` or `cuda`."""
    gpu: Device | None
    """Whose memory it is."""
    faking: Faking | None
    """The fake run it belongs to."""
    enters_faking: bool
    """Whether that begins with the block."""
    record: bool
    """Whether modules are recorded on a GPU."""


@dataclass(slots=True)
class Noted:
    """What a test has measured."""

    body: Entry | None = None
    """All of it, where a marker or `--dnnmem` asks for that."""
    blocks: list[Entry] = field(default_factory=list)
    """By the fixture."""


_STATE = pytest.StashKey[State]()
_NOTED = pytest.StashKey[Noted]()


def before_setup(item: pytest.Item) -> None:
    """Read what the test asks for, and run it elsewhere if it does not run here."""
    item.stash[_NOTED] = Noted()
    try:
        state = item.stash[_STATE] = State(_in_this_process(read_marker(item)))
        if state.asked.device == "fake":
            state.faking = _new_faking(state.asked.gpu)
        elif state.asked.device == "virtual" and not ROLE.device.startswith("virtual"):
            _check_function(item)
            item.fixturenames = []  # type: ignore[attr-defined]  # they are made in the child
            state.ran = run_child(item, device="virtual", gpu=state.asked.gpu)
    except DnnmemError as error:
        fail(error)


@contextmanager
def making_fixture(item: pytest.Item) -> Iterator[None]:
    """While a fixture of the test's own scope is made."""
    state = item.stash.get(_STATE, None)
    with ExitStack() as stack:
        if state is not None and state.faking is not None:
            stack.enter_context(state.faking.active())
        yield


def ran_elsewhere(item: pytest.Item) -> bool:
    """Whether the test's body has run already."""
    state = item.stash.get(_STATE, None)
    return state is not None and state.ran is not None


@contextmanager
def measuring_body(item: pytest.Item) -> Iterator[None]:
    """While the test's body runs."""
    state = item.stash.get(_STATE, None)
    if state is None or state.ran is not None:
        yield
        return
    from dnnmem.profilers.measure import measuring

    asked = state.asked
    try:
        with ExitStack() as stack:
            if state.faking is not None:
                stack.enter_context(state.faking.active())
            measured = stack.enter_context(
                measuring(item.nodeid, device=asked.device, gpu=asked.gpu, faking=state.faking, record=ROLE.record)
            )
            yield
    except DnnmemError as error:
        if state.faking is None:
            raise
        fail(error)
    _noted(item).body = measured.entry


def judge_blocks(item: pytest.Item) -> None:
    """Judge what the test has measured."""
    from dnnmem.cli.testing.judge import judge_test

    state, noted = item.stash.get(_STATE, None), _noted(item)
    limit = state.asked.limit_bytes if state is not None else None
    try:
        judge_test(item, noted.body, noted.blocks, limit)
    except DnnmemError as error:
        fail(error)


def report_from_elsewhere(item: pytest.Item, when: str) -> pytest.TestReport | None:
    """The report of that phase, if it was made in a child."""
    state = item.stash.get(_STATE, None)
    if state is None or state.ran is None or when not in state.ran.reports:
        return None
    data = dict(state.ran.reports[when])
    report: pytest.TestReport = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    report.nodeid, report.location = item.nodeid, item.location
    return report


def noted_blocks(item: pytest.Item) -> list[Entry]:
    """What the fixture has measured."""
    return _noted(item).blocks


def place_of_block(item: pytest.Item, device: str | None, gpu: str | None) -> Place:
    """Where a block of the test is measured. Raises `UsageError` for what does not go together."""
    needs_torch()
    import torch

    state = item.stash.get(_STATE, None)
    own = state.asked if state is not None else None
    default = own.device if own is not None else "cuda" if torch.cuda.is_available() else "cpu"
    chosen = choose(device) if device not in {None, "auto"} else default
    if chosen in {"virtual", "cuda"} and not torch.cuda.is_available():
        raise UsageError(
            f"a block cannot be measured on {chosen} in this process, which has no GPU",
            hint='mark the test: @pytest.mark.limit_peak_memory("4 GiB", device="virtual")',
        )
    shown = find_gpu(gpu) if gpu is not None else own.gpu if own is not None else None
    faking = state.faking if state is not None and chosen == "fake" else None
    enters = chosen == "fake" and faking is None
    if enters:
        faking = _new_faking(shown)
    if chosen in {"virtual", "cuda"} and ROLE.device:
        chosen, shown = _role()
    return Place(device=chosen, gpu=shown, faking=faking, enters_faking=enters, record=ROLE.record)


def fail(error: DnnmemError) -> NoReturn:
    """End the test with what a person should hear."""
    raise pytest.fail.Exception(f"{error.message}\n{error.hint}".rstrip(), pytrace=False) from None


def _noted(item: pytest.Item) -> Noted:
    return item.stash.setdefault(_NOTED, Noted())


def _in_this_process(asked: Asked) -> Asked:
    """In a child the device is the one that it was started on."""
    if not ROLE.device or asked.device not in {"cuda", "virtual"}:
        return asked
    device, gpu = _role()
    if device == "virtual":
        from dnnmem.cli.testing.on_virtual import true_small_values

        true_small_values()
    return replace(asked, device=device, gpu=gpu)


def _role() -> tuple[str, Device | None]:
    device, _, gpu = ROLE.device.partition(" ")
    return device, find_gpu(gpu or None)


def _new_faking(gpu: Device | None) -> Faking:
    import os

    from dnnmem.cli.cache import cache_folder
    from dnnmem.estimator.errors import UnsupportedError
    from dnnmem.profilers.faking import Faking
    from dnnmem.profilers.virtual_gpu.cudnn_service import address_for

    try:
        address = address_for(gpu, cache_folder(os.environ)) if gpu is not None else ""
    except UnsupportedError:  # workspaces of convolutions count as 0
        address = ""
    return Faking(gpu, cudnn=address)


def _check_function(item: pytest.Item) -> None:
    from _pytest.unittest import TestCaseFunction

    if not isinstance(item, pytest.Function) or isinstance(item, TestCaseFunction):
        raise UsageError(
            f"{item.name} is no function of pytest, and cannot run on a virtual GPU",
            hint="write it without unittest.TestCase, or measure it on device='cpu'",
        )
