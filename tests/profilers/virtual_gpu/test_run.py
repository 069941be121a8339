"""Requests that are served on a virtual GPU, from the parent's side: the whole way, refusals included."""

from __future__ import annotations

import pytest

from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import ModelError, UnsupportedError
from dnnmem.profilers import monitor, place
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import run
from dnnmem.profilers.virtual_gpu.launch import DEFAULT_GPU, prepare

MODEL = """
import ctypes, torch
class Model(torch.nn.Linear):
    def forward(self, x):
        {body}
        return super().forward(x)
def make_model(): return Model(4, 4)
def make_batch(batch_size): return torch.randn(batch_size, 4)
def make_loss(output, batch): return output.sum()
"""


def request_for(path, **facts):
    return Request(target=str(path), batch_size=4, **{"device": "virtual", **facts})


@pytest.fixture
def mlp(root):
    return root / "sample_models" / "mlp.py"


@pytest.fixture
def no_real_gpu(monkeypatch):
    monkeypatch.setattr(monitor, "read", monitor.Reading)


def test_a_step_is_recorded_on_the_gpu_that_was_named(cache, mlp):
    # GIVEN a request for a virtual A10G  WHEN
    trace, measured = run(request_for(mlp, gpu="a10g"), cache=cache)
    # THEN it says where it ran, has the memory of that GPU, and no times
    assert (trace.origin.device, trace.origin.gpu) == ("virtual", "a10g")
    assert measured.reserved_bytes >= measured.allocated_bytes > 0
    assert measured.context_bytes == find_device("a10g").context_bytes
    assert all(op.seconds is None for op in trace.ops)


def test_the_gpu_that_stands_in_is_named(cache, mlp):
    trace, measured = run(request_for(mlp), cache=cache)
    assert trace.origin.gpu == DEFAULT_GPU
    assert any(DEFAULT_GPU in note for note in trace.origin.notes)
    assert measured.context_bytes == find_device(DEFAULT_GPU).context_bytes


@pytest.mark.usefixtures("no_real_gpu")
def test_auto_is_virtual_where_there_is_no_real_gpu(cache, mlp):
    trace, _ = run(request_for(mlp, device="auto"), cache=cache)
    assert trace.origin.device == "virtual"


def test_a_call_that_is_missing_is_an_error_with_its_name(cache, tmp_path):
    # GIVEN a model that needs what the virtual GPU lacks
    (tmp_path / "model.py").write_text(MODEL.format(body="ctypes.CDLL('libcuda.so.1').cuMemAllocPitch_v2()"))
    # WHEN THEN
    with pytest.raises(UnsupportedError, match=r"calls cuMemAllocPitch_v2, which the virtual GPU does not have"):
        run(request_for(tmp_path / "model.py"), cache=cache)


def test_a_model_that_does_not_fit_runs_out_of_memory(cache, tmp_path):
    # GIVEN a model that wants 15 GiB of a GPU that has less  WHEN THEN
    (tmp_path / "model.py").write_text(MODEL.format(body="x.new_empty(15 * 2**28, dtype=torch.float32)"))
    with pytest.raises(ModelError, match="ran out of memory") as error:
        run(request_for(tmp_path / "model.py", gpu="t4"), cache=cache)
    assert "14.56 GiB" in str(error.value)


@pytest.mark.parametrize(
    ("device", "gpu", "real", "reason", "expected"),
    [
        ("fake", None, False, None, "fake"),
        ("cuda", None, False, None, "cuda"),
        ("auto", None, True, None, "auto"),
        ("auto", None, False, "no compiler", "auto"),
        ("auto", "mi300x", False, None, "auto"),
    ],
)
def test_who_else_serves_a_request(monkeypatch, tmp_path, device, gpu, real, reason, expected):
    # GIVEN a machine with or without a GPU and a compiler
    monkeypatch.setattr(monitor, "read", lambda: monitor.Reading(used_bytes=0 if real else None))
    monkeypatch.setattr(place, "unavailable", lambda: reason)
    monkeypatch.setattr(place, "prepare", lambda *_, **__: pytest.fail("no virtual GPU was meant"))
    # WHEN
    request = Request(target="m.py", device=device, gpu=gpu)
    found = place.place(
        request, {"A": "1"}, gpu=None, cache=None, error_file=tmp_path / "error.json", say=lambda _: None
    )
    # THEN the child is told what the parent was, in the environment that it has
    assert (found.request.device, found.environment) == (expected, {"A": "1"})


@pytest.mark.usefixtures("no_real_gpu")
def test_a_virtual_gpu_that_cannot_be_had_is_left_out_of_auto(monkeypatch, tmp_path):
    # GIVEN a compiler that fails
    def fail(*_, **__):
        raise UnsupportedError("cc could not build it")

    monkeypatch.setattr(place, "unavailable", lambda: None)
    monkeypatch.setattr(place, "prepare", fail)
    said = []
    # WHEN  THEN auto goes on without and says so, but a virtual GPU that was asked for is an error
    options = {"gpu": None, "cache": None, "error_file": tmp_path / "e.json", "say": said.append}
    assert place.place(Request(target="m.py"), {}, **options).request.device == "auto"
    assert said == ["the virtual GPU is left out: cc could not build it"]
    with pytest.raises(UnsupportedError):
        place.place(Request(target="m.py", device="virtual"), {}, **options)


def test_a_fake_run_for_a_gpu_is_told_whom_to_ask_for_workspaces(monkeypatch, tmp_path):
    # GIVEN a cuDNN that can be asked  WHEN a fake run for a GPU is started  THEN it is told where
    options = {"gpu": None, "cache": tmp_path, "error_file": tmp_path / "e.json", "say": pytest.fail}
    request = Request(target="m.py", device="fake", gpu="t4")
    monkeypatch.setattr(place, "address_for", lambda gpu, cache: f"@{gpu.name} {cache == tmp_path}")
    assert place.place(request, {"A": "1"}, **options).environment == {"A": "1", "DNNMEM_VGPU_CUDNN": "@t4 True"}

    # AND one that cannot be asked is no error: the report says so
    def fail(*_):
        raise UnsupportedError("no compiler")

    monkeypatch.setattr(place, "address_for", fail)
    assert place.place(request, {"A": "1"}, **options).environment == {"A": "1"}


def test_what_the_machine_says_of_its_own_gpus_is_not_passed_on(cache):
    # GIVEN an environment that hides all GPUs and preloads something  WHEN
    base = {"CUDA_VISIBLE_DEVICES": "", "LD_PRELOAD": "libfoo.so", "LD_LIBRARY_PATH": "/lib/foo", "HOME": "/home/me"}
    told = prepare("a10g", base, count=2, cache=cache).environment
    # THEN the stub libraries come first, and the rest stays
    assert "CUDA_VISIBLE_DEVICES" not in told
    assert told["LD_PRELOAD"].split()[0] == "libcuda.so.1"
    assert told["LD_PRELOAD"].split()[-1] == "libfoo.so"
    assert told["LD_LIBRARY_PATH"].endswith(":/lib/foo")
    assert (told["HOME"], told["DNNMEM_VGPU_COUNT"]) == ("/home/me", "2")


def test_two_runs_at_a_time_have_each_their_own_gpu(on_gpu):
    # GIVEN two processes that fill most of a GPU each  WHEN one runs inside the other  THEN both have all its memory
    inner = "import torch; x = torch.empty(60 * 2**30, dtype=torch.uint8, device='cuda'); print('fits')"
    outer = f"""
        import subprocess, sys, torch
        x = torch.empty(60 * 2**30, dtype=torch.uint8, device='cuda')
        print(subprocess.run([sys.executable, '-c', {inner!r}], capture_output=True, text=True, check=True).stdout)
    """
    assert on_gpu(outer).stdout.split() == ["fits"]
