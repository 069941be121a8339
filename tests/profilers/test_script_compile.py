"""Compiled programs on virtual GPUs: what is chosen where a real one would be timed, and what they need."""

import math
import os
import shutil
import subprocess

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.profilers.ranks import ScriptRun, run_script
from dnnmem.profilers.script_compile import compiled, first_finite, graphs
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.virtual_gpu.launch import prepare, unavailable

virtual = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
CACHE = cache_folder(os.environ)
ONE_THREAD = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(name="train", scope="module")
def _train(root):
    """Runs tests/data/scripts/compiled.py in a mode, once; returns its result and what it printed."""
    known = {}

    def run(mode):
        if mode not in known:
            said = []
            request = ScriptRequest(script=str(root / "tests/data/scripts/compiled.py"), arguments=(mode,), steps=9)
            job = ScriptRun(request=request, gpu=find_device("a100-80gb"))
            (result,) = run_script(job, ONE_THREAD, cache=CACHE, on_output=said.append)
            known[mode] = result, said
        return known[mode]

    return run


@virtual
def test_a_compiled_program_needs_less_and_says_that_it_is_compiled(train):
    # GIVEN a program  WHEN it runs eagerly, and compiled
    eager, _ = train("eager")
    result, _ = train("max-autotune-no-cudagraphs")

    # THEN fewer intermediate results are kept, and the notes name the graph
    assert (eager.outcome, result.outcome) == ("ran", "ran")
    assert result.device.steps[-1].allocated_bytes < eager.device.steps[-1].allocated_bytes
    assert (eager.graphs, result.graphs) == (0, 1)
    assert "compiled by torch.compile: 1 graph of 1 frame" in result.notes
    assert not [note for note in eager.notes if "compile" in note]


@virtual
def test_cuda_graphs_keep_their_memory_in_private_pools(train):
    result, said = train("reduce-overhead")

    assert result.outcome == "ran"
    assert "private pools 1" in said
    assert train("eager")[1] == ["private pools 0"]
    # AND a replay allocates nothing of what its graph holds
    first, *_, last = result.device.steps
    assert last.allocated_bytes < first.allocated_bytes
    assert last.reserved_bytes == result.device.reserved_bytes


@virtual
def test_autotuning_takes_a_fixed_choice(train):
    # GIVEN a mode that times dozens of kernels for each product  WHEN a run of it ends at all
    result, said = train("max-autotune-no-cudagraphs")

    # THEN ATen's kernel was the only one that was timed, and the notes say by which rule
    assert result.outcome == "ran"
    rules = [note for note in result.notes if note.startswith("where Inductor times kernels, ATen's own is taken")]
    assert len(rules) == 1
    timed = [line for line in said if line.strip().startswith("triton_mm") and "inf ms" not in line]
    assert not timed
    # AND the benchmark's own buffers are in the peak of the first step
    first, *_, last = result.device.steps
    assert first.allocated_bytes > last.allocated_bytes + 2**20


def test_choices_are_tried_in_order_until_one_works():
    asked = []

    def benchmark(choices):
        asked.extend(choices)
        return dict.fromkeys(choices, math.inf if choices[0] < 2 else 0.5)

    assert first_finite(benchmark, [0, 1, 2, 3]) == {0: math.inf, 1: math.inf, 2: 0.5}
    assert asked == [0, 1, 2]


def test_all_choices_may_fail():
    assert first_finite(lambda choices: dict.fromkeys(choices, math.inf), "ab") == {"a": math.inf, "b": math.inf}


def test_nothing_is_said_to_be_compiled_where_nothing_is():
    if graphs() == 0:  # another test of this process may compile
        assert compiled() == []


@virtual
def test_what_inductor_chose_does_not_reach_the_users_cache(tmp_path):
    # GIVEN a user's own caches  WHEN a process is prepared
    base = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": "/mine", "TRITON_CACHE_DIR": "/triton"}
    told = prepare("h100", base, cache=CACHE, error_file=tmp_path / "error.json").environment

    # THEN Inductor's is another one, of this run alone, and Triton's, which holds no choice, stays
    assert told["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert told["TRITON_CACHE_DIR"] == "/triton"


def found(environment):
    """What a program with that environment calls if it calls nvidia-smi."""
    return shutil.which("nvidia-smi", path=environment["PATH"])


@virtual
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "GPU 0: NVIDIA H100 80GB HBM3 (virtual)\nGPU 1: NVIDIA H100 80GB HBM3 (virtual)\n"),
        (("-i", "0", "--query-gpu=name,compute_cap", "--format=csv,noheader"), "NVIDIA H100 80GB HBM3, 9.0\n"),
        (("--query-gpu=index", "--format=csv"), "index\n0\n1\n"),
    ],
)
def test_nvidia_smi_tells_of_the_virtual_gpus(words, said):
    told = prepare("h100", os.environ, count=2, cache=CACHE).environment
    answer = subprocess.run([found(told), *words], env=told, capture_output=True, text=True, check=True)
    assert answer.stdout == said


@virtual
def test_nvidia_smi_refuses_what_it_does_not_know_by_name():
    told = prepare("h100", os.environ, cache=CACHE).environment
    answer = subprocess.run([found(told), "pmon"], env=told, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "pmon" in answer.stderr
