"""`dnnmem calibrate`: what it refuses, what it writes, and that `estimate` then uses it."""

from __future__ import annotations

import io

import pytest

from dnnmem.cli.app import run
from dnnmem.cli.commands.estimate import own_rates
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.time_model import load
from dnnmem.profilers.calibrate_spec import curves_of, spec_text

FOUND = {
    "machine": {
        "name": "Some CPU @ 2 GHz", "vendor": "cpu", "compute_capability": "", "units": 2, "memory_bytes": 2**34,
        "cache_bytes": 2**25,
    },
    "curves": {
        "gemm-64": [[1e6, 2e-5], [1e9, 1e-2]], "stream": [[1e3, 2e-6], [1e6, 5e-5]],
        "gelu": [[1e3, 3e-6], [1e4, 2e-6], [1e6, 9e-5]],
    },
    "float32_flops_per_s": 1e11,
    "memory_bytes_per_s": 2e10,
    "launch_seconds": 3e-6,
    "host_seconds": 0.0,
    "fault_seconds_per_byte": 3e-10,
    "copies": {},
}  # fmt: skip


def said(arguments):
    """Exit code and what is told of a failure."""
    stderr = io.StringIO()
    return run(["calibrate", *arguments], stderr=stderr), stderr.getvalue()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "virtual"], "mean nothing"),
        (["--device", "tpu"], "tpu"),
        (["m.py"], "--seconds and --log"),
        (["m.py", "--seconds", "1", "--log", "x"], "--seconds and --log"),
        (["--seconds", "1"], "belong to a TARGET"),
        (["--from", "missing.csv"], "missing.csv"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = said(arguments)
    assert code == 2
    assert words in text
    assert not list(tmp_path.iterdir())


def test_a_cpus_file_is_a_device_with_its_rates(tmp_path):
    # GIVEN the file of a measured CPU  WHEN it is named as a cluster
    path = tmp_path / "machine.toml"
    path.write_text(spec_text(FOUND, None, ["a test"]))
    where = find_cluster(str(path))
    model = load(where.device, own_rates(str(path)))
    # THEN it is a device without a context, whose own curves price its ops
    assert (where.device.vendor, where.device.sm_count, where.gpus) == ("cpu", 2, 1)
    assert model.curves["gemm-64"].sizes == (1e6, 1e9)
    assert (model.host_seconds, model.gemm) == (0.0, 1.0)
    assert model.launch_seconds == pytest.approx(3e-6)


def test_curves_rise_and_leave_out_what_any_operator_costs():
    curves = curves_of(FOUND["curves"])
    # noise made the smallest gelu the slower one: both count as their middle, and only the rest is its own
    first, second, last = curves["gelu"].seconds
    assert first == second < last
    assert last == pytest.approx(9e-5 - (3e-6 * 2e-6) ** 0.5)


def test_packaged_devices_have_no_rates_of_their_own():
    assert own_rates("h100:8") is None


def test_a_step_calibrates_the_rates_that_estimate_then_uses(tmp_path, monkeypatch, capsys):
    # GIVEN a small model that took a millisecond longer than the packaged rates say
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def make_model():\n    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())\n"
        "def make_batch(batch_size=2):\n    return torch.randn(batch_size, 8), torch.randn(batch_size, 8)\n"
        "def make_loss(y, batch):\n    return ((y - batch[1]) ** 2).mean()\n"
    )
    (tmp_path / "steps.csv").write_text("target,batch,cluster,seconds\nnet.py,2,h100:1,0.004\n")
    # WHEN it calibrates
    assert run(["calibrate", "--from", "steps.csv", "--out", "rates.toml", "-q"]) == 0
    told = capsys.readouterr().out
    # THEN the page says what moved, and the file makes the host slower
    assert "iteration_seconds" in told
    model, packaged = (load(find_cluster("h100:1").device, rates) for rates in (tmp_path / "rates.toml", None))
    assert model.iteration_seconds + model.host_seconds > packaged.iteration_seconds + packaged.host_seconds
    assert model.spread["host"] < packaged.spread["host"]
