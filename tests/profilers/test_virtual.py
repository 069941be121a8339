"""What is recorded on a GPU, real or virtual, is what its allocator did: held against runs that nobody watched.

On a machine without a GPU, `virtual_gpu/test_gpu_tests.py` runs this file on a virtual one.
"""

from __future__ import annotations

import difflib
import gc

import pytest
import torch

from dnnmem.estimator.replay import replay_trace
from dnnmem.estimator.trace import Origin
from dnnmem.profilers.cuda import MAX_HISTORY, _build, _history, profile_cuda
from dnnmem.profilers.gpu_values import SmallValues
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import resolve
from dnnmem.profilers.virtual import is_virtual
from tests.profilers.recorded import CLEARED, zoo_target

pytestmark = pytest.mark.gpu

SAMPLES = {
    "mlp": {"inputs": "12", "width": "64", "depth": "2"},
    "resnet": {"width": "8", "image": "32"},
    "gpt": {"vocab": "101", "width": "64", "layers": "2", "heads": "2"},
    "lstm": {"vocab": "101", "width": "64", "dropout": "0"},  # whose states would stay, for all tests that follow
    "moe": {"vocab": "101", "width": "64", "layers": "2", "heads": "2"},
    "unet": {"width": "8", "image": "32"},
    "vit": {"image": "16", "patch": "4", "width": "64", "layers": "2", "heads": "2"},
}
ZOO_NAMES = ("resnet", "diffusion_unet", "llama", "checkpoint_nonreentrant", "t5", "gnn", "accumulation", "grad_scaler")


AUTOCAST = {"sample:vit", "zoo:grad_scaler"}
"""Autocast's cache is a hash map by address: the copies it drops at the end die in an order of no meaning."""


@pytest.fixture(params=[*(f"sample:{name}" for name in SAMPLES), *(f"zoo:{name}" for name in ZOO_NAMES)])
def name(request):
    return request.param


@pytest.fixture
def target(name, root):
    kind, name = name.split(":")
    if kind == "zoo":
        return zoo_target(name)
    return resolve(Request(target=str(root / "sample_models" / f"{name}.py"), batch_size=4, args=SAMPLES[name]))


@pytest.fixture(autouse=True, scope="module")
def values():
    """As `profile --device virtual` has it: small values are true."""
    if not is_virtual():
        yield None
        return
    values = SmallValues()
    yield values
    values.close()


@pytest.fixture(autouse=True)
def _empty_gpu():
    """Nothing of an earlier test is on the GPU: no tensor, no workspace, no cached block."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def recorded(target, steps=3):
    torch.manual_seed(0)
    return profile_cuda(target, steps=steps, repeats=0, origin=Origin(), timed=False, on_step=lambda _: None)


def bare_events(target, steps=3):
    """Allocations and frees of the last of `steps` steps, in order; nothing but the allocator itself watches."""
    torch.manual_seed(0)
    built = _build(target)
    for _ in range(steps - 1):
        target.train_step(built.model, built.batch, built.optimizer)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.memory._record_memory_history("all", context=None, max_entries=MAX_HISTORY, **CLEARED)
    target.train_step(built.model, built.batch, built.optimizer)
    history = _history()
    torch.cuda.memory._record_memory_history(None)
    signs = {"alloc": 1, "free_requested": -1}
    return [event["size"] * signs[event["action"]] for event in history if event["action"] in signs]


def test_replay_gives_the_peaks_of_a_bare_run_to_the_byte(target):
    # GIVEN a step that was recorded, and the peaks of the same steps with nobody watching
    trace, measured = recorded(target)
    # WHEN its allocator events are played from process start
    played = replay_trace(trace)
    # THEN allocated and reserved bytes are those
    assert played.peak_allocated_bytes == measured.allocated_bytes
    assert played.peak_reserved_bytes == measured.reserved_bytes


def test_the_trace_is_the_bare_runs_list_of_events(name, target):
    # GIVEN the allocator's own list of one step, nobody watching
    bare = bare_events(target)
    # WHEN the step is recorded
    trace, _ = recorded(target)
    # THEN the trace is that list
    told = [event.nbytes for _, event in trace.events()]
    if name in AUTOCAST:
        told, bare = sorted(told), sorted(bare)
    assert told == bare, "\n".join(difflib.unified_diff([*map(str, bare)], [*map(str, told)], n=1, lineterm=""))


def test_without_a_clock_there_are_no_times():
    trace, measured = recorded(zoo_target("accumulation"), steps=2)
    assert measured.step_seconds is None
    assert all(op.seconds is None for op in trace.ops)
