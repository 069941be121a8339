import sys

import pytest

from dnnmem.cli.app import run
from dnnmem.cli.commands import doctor

FACTS = {
    "torch": "2.9.0+cu130", "import_seconds": 1.5, "cuda_build": "13.0", "hip_build": None, "fake": "",
    "gpus": [{"name": "NVIDIA H200", "nbytes": 140 * 2**30}],
}  # fmt: skip


def lines(**changes):
    return dict(doctor.describe({**FACTS, **changes}))


def test_a_machine_with_a_gpu():
    told = lines()

    assert told["torch"] == "2.9.0+cu130, built for CUDA 13.0, loads in 1.5 s"
    assert told["device cuda"] == "works: NVIDIA H200 (140.0 GiB)"
    assert told["device cpu"] == told["device fake"] == "works"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gpus": []}, "no GPU that CUDA can use"),
        ({"gpus": [], "cuda_build": None}, "this torch is not built for CUDA"),
        ({"gpus": [], "gpu_error": "driver too old"}, "driver too old"),
    ],
)
def test_why_there_is_no_cuda(changes, why):
    assert lines(**changes)["device cuda"] == f"does not work: {why}"


def test_a_fake_mode_that_fails_says_why():
    assert lines(fake="ImportError: no")["device fake"] == "does not work: ImportError: no"


def test_the_real_torch_answers(capsys):
    assert run(["doctor"]) == 0

    text = capsys.readouterr().out
    assert "device fake     works" in text
    assert f"python          {sys.version.split()[0]}" in text


def test_a_torch_that_does_not_load_is_an_error_after_the_report(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "ask_torch", lambda _: {"error": "ImportError: libcudart.so"})

    assert run(["doctor"]) == 4

    told = capsys.readouterr()
    assert "devices         none: they all need torch" in told.out
    assert "error: torch does not work here: ImportError: libcudart.so" in told.err


def test_a_probe_that_hangs_or_dies_becomes_a_message(monkeypatch, tmp_path):
    assert doctor.ask_torch(0.01) == {"error": "it did not load within 0.01 seconds"}

    (tmp_path / "torch.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor.ask_torch(60)["error"]
