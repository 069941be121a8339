"""Tests fail when they need more memory than their marker, or than was accepted; and say whose it is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch._dynamo  # noqa: F401 - pytester forgets what a run has loaded, and torch can be loaded only once

import dnnmem.profilers.measure  # noqa: F401 - loads the rest
from dnnmem.profilers.virtual_gpu.launch import unavailable

pytest_plugins = ("pytester",)

TRAIN = """
import pytest, torch
from torch import nn

def train(n=64, device="cpu"):
    model = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        model(torch.ones(8, n, device=device)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
"""
WEIGHTS = (64 * 64 + 64) * 4
"""Bytes of a layer."""

on_a_virtual_gpu = pytest.mark.skipif(unavailable() is not None, reason="no virtual GPU here")


@pytest.fixture
def run(pytester: pytest.Pytester):
    def run_(body: str, *options: str) -> pytest.RunResult:
        pytester.makepyfile(TRAIN + body)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)

    return run_


def _limited(arguments: str, call: str = "train()", more: str = "") -> str:
    return f"{more}\n@pytest.mark.limit_peak_memory({arguments})\ndef test_it():\n    {call}\n"


def _baseline(pytester: pytest.Pytester) -> dict[str, int]:
    data = json.loads((pytester.path / ".dnnmem" / "pytest.json").read_text())
    return {step["target"]: step["allocated_bytes"] for step in data["steps"].values()}


def test_a_test_within_its_limit_passes(run) -> None:
    run(_limited("'1 MiB', device='cpu'")).assert_outcomes(passed=1)


def test_one_above_it_fails_and_says_who_holds_the_memory(run) -> None:
    # GIVEN a step of two layers  WHEN it may need 64 KiB
    result = run(_limited("'64 KiB', device='cpu'"))
    # THEN it fails without a traceback, with both layers, the optimizer's own memory and the line
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "peak memory * more than the limit, 64.0 KiB (cpu, torch *)",
            "*dnnmem: at the peak*",
            "0,2 x2 * optimizer *, grad *, param *; *.py:*",
            "the optimizer *",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_the_limit_is_the_most_that_is_allowed(run) -> None:
    # GIVEN one tensor of 1024 bytes  WHEN the limit is that, and one byte less
    allowed = run(_limited("1024, device='cpu'", "x = torch.ones(256)"))
    refused = run(_limited("'1023', device='cpu'", "x = torch.ones(256)"))
    # THEN only the second fails
    allowed.assert_outcomes(passed=1)
    refused.assert_outcomes(failed=1)


def test_a_fake_run_of_a_large_model_costs_no_memory(run) -> None:
    # GIVEN a step of 70 TB, whose layer comes from a fixture
    body = _limited("'1 GiB', device='fake'", "pass").replace("test_it()", "test_it(layer)")
    fixture = "@pytest.fixture\ndef layer():\n    return nn.Linear(1 << 22, 1 << 22)\n"
    # WHEN it is touched  THEN its memory counts
    result = run(fixture + body.replace("    pass", "    layer(torch.ones(1 << 22))"))
    result.stdout.fnmatch_lines(["peak memory 65,536.* GiB is *(fake, torch *"])


def test_a_model_from_outside_of_the_fake_run_is_refused(run) -> None:
    fixture = "@pytest.fixture(scope='module')\ndef layer():\n    return nn.Linear(8, 8)\n"
    body = _limited("'1 GiB', device='fake'", "layer(torch.ones(8))").replace("test_it()", "test_it(layer)")
    result = run(fixture + body)
    result.stdout.fnmatch_lines(["Linear was built outside of the fake run*", "build the model where it is measured*"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("'many'", "'many' is not a size"),
        ("", "limit_peak_memory needs a limit"),
        ("'1 GiB', device='tpu'", "device 'tpu' is none of auto, cpu, fake, virtual, cuda"),
        ("'1 GiB', gpu='a11g'", "*a11g*"),
        ("'1 GiB', gpus=2", "limit_peak_memory takes no 'gpus'"),
        ("True", "the limit is True; it is a size"),
    ],
)
def test_a_wrong_marker_is_one_clear_error(arguments: str, said: str, run) -> None:
    result = run(_limited(arguments))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_without_torch_the_message_says_so(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = run(_limited("'1 MiB'"))
    result.stdout.fnmatch_lines(["measuring a test needs torch, which is not installed here", "pip install torch"])


def test_a_marker_on_a_class_is_for_all_its_tests_and_the_nearer_one_counts(run) -> None:
    result = run("""
@pytest.mark.limit_peak_memory("1 KiB", device="cpu")
class TestIt:
    def test_a(self): train()
    @pytest.mark.limit_peak_memory("1 MiB", device="cpu")
    def test_b(self): train()
""")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["FAILED *::TestIt::test_a*"])


def test_each_parameter_has_a_peak_of_its_own(run, pytester: pytest.Pytester) -> None:
    # GIVEN a test of two sizes, one with colons in its id  WHEN its peaks are accepted
    body = _limited("'1 MiB', device='cpu'", "x = torch.ones(n)").replace("test_it()", "test_it(n)")
    result = run(f"@pytest.mark.parametrize('n', [256, 512], ids=['a', 'b::c'])\n{body.strip()}\n", "--dnnmem-update")
    # THEN each is kept by its id
    result.stdout.fnmatch_lines(["2 peaks accepted in *"])
    assert [nbytes for _, nbytes in sorted(_baseline(pytester).items())] == [1024, 2048]


def test_an_expected_failure_is_expected_of_memory_too(run) -> None:
    run(_limited("'1 KiB', device='cpu'", more="@pytest.mark.xfail(strict=True)")).assert_outcomes(xfailed=1)


def test_a_test_that_fails_by_itself_is_not_judged(run) -> None:
    result = run(_limited("'1 KiB', device='cpu'", "train(); assert False, 'mine'"))
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*peak memory*")


def test_a_skipped_test_is_not_measured(run) -> None:
    run(_limited("'nonsense'", more="@pytest.mark.skip")).assert_outcomes(skipped=1)


def test_the_fixture_measures_twice(run, pytester: pytest.Pytester) -> None:
    # GIVEN two blocks in one test  WHEN they are measured and accepted
    result = run(
        f"""
def test_it(dnnmem):
    with dnnmem.measure() as m:
        train()
    with dnnmem.measure("small") as n:
        x = torch.ones(256)
    assert m.peak_bytes > n.peak_bytes == 1024
    assert m.reserved_bytes is None
    assert m.layers["0", "param"] == m.layers["2", "grad"] == {WEIGHTS}
    assert m.profile.peak.phase == "step"
""",
        "--dnnmem-update",
    )
    # THEN they are told apart
    result.assert_outcomes(passed=1)
    assert [name.rpartition(" ")[2] for name in sorted(_baseline(pytester))] == ["#1", "small"]


def test_a_block_on_a_gpu_that_is_not_there_is_refused(run) -> None:
    result = run("def test_it(dnnmem):\n    with dnnmem.measure(device='virtual'):\n        pass\n")
    result.stdout.fnmatch_lines(["*a block cannot be measured on virtual in this process*"])


def test_growth_fails_and_names_the_layer(run) -> None:
    # GIVEN an accepted peak
    run(_limited("'1 MiB', device='cpu'"), "--dnnmem-update").assert_outcomes(passed=1)
    # WHEN the test is as before  THEN it passes
    run(_limited("'1 MiB', device='cpu'"), "--dnnmem-fail-on-increase=0").assert_outcomes(passed=1)
    # WHEN its layers are wider, within the limit  THEN it fails, unless that much is allowed
    wide = _limited("'1 MiB', device='cpu'", "train(72)")
    result = run(wide, "--dnnmem-fail-on-increase=2%")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["peak memory * was *: its peak grew by *", "*what changed at the peak*", "0,2 x2 *+*"])
    run(wide, "--dnnmem-fail-on-increase=40%").assert_outcomes(passed=1)


def test_what_is_not_accepted_yet_passes_and_is_told(run) -> None:
    # GIVEN a peak that is accepted on the CPU  WHEN the same test runs on fakes
    run(_limited("'1 MiB', device='cpu'"), "--dnnmem-update")
    result = run(_limited("'1 GiB', device='fake'"), "--dnnmem-fail-on-increase=2%")
    # THEN nothing is compared, and the other conditions are named
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["nothing is accepted for *fake | no gpu*; other conditions: *cpu | no gpu*"])


@pytest.mark.parametrize(("share", "text"), [("2", "{}"), ("many", "{}"), ("2%", "<<<<<<< mine\n")])
def test_a_wrong_share_or_file_ends_the_run_at_its_start(share: str, text: str, pytester: pytest.Pytester) -> None:
    (pytester.path / ".dnnmem").mkdir()
    (pytester.path / ".dnnmem" / "pytest.json").write_text(text)
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess(f"--dnnmem-fail-on-increase={share}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert len(result.errlines) <= 4
    assert result.errlines[0].startswith("ERROR: ")


def test_dnnmem_shows_the_peaks_of_all_tests(run) -> None:
    result = run("def test_a(): x = torch.ones(512)\ndef test_b(): pass\n", "--dnnmem")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*memory (dnnmem)*", "*2.0 KiB  *::test_a", "*0 B  *::test_b"])


def test_workers_at_once_accept_into_one_file(pytester: pytest.Pytester) -> None:
    # GIVEN two processes of one test each, as pytest-xdist has them  WHEN both accept
    pytester.makepyfile(TRAIN + "".join(
        f"@pytest.mark.limit_peak_memory('1 MiB', device='cpu')\ndef test_{n}(): x = torch.ones({n})\n" for n in (8, 16)
    ))  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "--dnnmem-update", "-k"]
    workers = [subprocess.Popen([*command, f"test_{n}"], cwd=pytester.path) for n in (8, 16)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    # THEN the file holds both
    assert sorted(_baseline(pytester).values()) == [32, 64]


@on_a_virtual_gpu
def test_a_test_runs_on_a_virtual_gpu(run) -> None:
    # GIVEN tests of 'cuda'  WHEN they are marked for a virtual GPU
    result = run("""
@pytest.fixture
def said(capsys):
    assert torch.cuda.get_device_name() == "NVIDIA A10G"
    return "it ran there"

@pytest.mark.limit_peak_memory("1 MiB", device="virtual", gpu="a10g")
def test_it(said):
    print(said)
    train(256, device="cuda")

@pytest.mark.limit_peak_memory("1 MiB", device="virtual", gpu="a10g")
def test_cpu():
    train()
""")
    # THEN one fails with its layers and its output, and one for it never used the GPU
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "peak memory * more than the limit, 1.0 MiB (virtual, a10g, torch *)",
            "0,2 x2 *",
            "it ran there",
            "the test allocated nothing on the virtual GPU*",
        ]
    )


def test_it_costs_nothing_when_unused(pytester: pytest.Pytester) -> None:
    # GIVEN a project without markers  WHEN its tests run  THEN neither torch nor what measures is loaded
    pytester.makepyfile("""
import sys

def test_it(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("dnnmem")
    assert "torch" not in sys.modules and "numpy" not in sys.modules
    assert [name for name in sys.modules if name.startswith("dnnmem.")] == ["dnnmem.cli", "dnnmem.cli.pytest_plugin"]
""")
    pytester.runpytest_subprocess("-p", "no:hypothesispytest").assert_outcomes(passed=1)
