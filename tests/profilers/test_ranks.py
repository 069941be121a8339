"""Scripts on virtual GPUs, end to end; each takes some seconds, most of them torch's import."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.cluster import find_device
from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.ranks import ScriptRun, parse_ranks, run_script
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.virtual_gpu.launch import unavailable

virtual = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")
CACHE = cache_folder(os.environ)


@pytest.fixture(name="train")
def _train(root):
    """Runs a script of tests/data/scripts; returns its results and what it printed."""

    def run(name, *, gpu="a100-80gb", ranks=None, world_size=1, **asked):
        said = []
        request = ScriptRequest(script=str(root / "tests/data/scripts" / name), world_size=world_size, **asked)
        shown = find_device(gpu) if isinstance(gpu, str) else gpu
        job = ScriptRun(request=request, gpu=shown, ranks=ranks, world_size=world_size)
        return run_script(job, os.environ, cache=CACHE, on_output=said.append), said

    return run


@pytest.mark.parametrize(
    ("text", "size", "ranks"),
    [("0", 8, (0,)), ("first,last", 8, (0, 7)), ("first,last", 1, (0,)), ("all", 3, (0, 1, 2)), ("3,1,3", 8, (1, 3))],
)
def test_ranks_are_named_by_number_or_place(text, size, ranks):
    assert parse_ranks(text, size) == ranks


@pytest.mark.parametrize(("text", "size"), [("8", 8), ("-1", 8), ("", 8), ("middle", 8), ("all", 1024)])
def test_other_ranks_are_refused(text, size):
    with pytest.raises(UsageError, match="--rank"):
        parse_ranks(text, size)


@virtual
def test_a_script_is_ended_after_its_steps_and_cannot_prevent_it(train):
    # GIVEN a script that trains for long, catches everything, tidies up and resets the peaks it reads
    (result,), said = train("train.py", arguments=("a", "--b"), steps=2)

    # THEN it made its steps, and neither its except nor its finally ran
    assert (result.outcome, result.stopped, result.steps, result.optimizers) == ("ran", True, 2, {"AdamW": 2})
    assert said[0] == "arguments a --b"
    assert not [line for line in said if "swallowed" in line or "tidied" in line]
    # AND it read the peaks that it would have read, and they are those of the result
    read = [int(line.split()[1]) for line in said if line.startswith("peak")]
    assert len(read) == 2
    (gpu,) = result.memory
    assert max(read) == gpu.allocated_bytes == max(step.allocated_bytes for step in gpu.steps)
    assert gpu.reserved_bytes >= gpu.allocated_bytes >= gpu.requested_bytes > 0


@virtual
def test_a_script_that_runs_out_of_memory_says_where(train):
    small = replace(find_device("a100-80gb"), usable_bytes=1 << 30, context_bytes=0)

    (result,), _ = train("too_large.py", gpu=small)

    assert result.outcome == "out_of_memory"
    assert (result.oom.phase, result.oom.step) == ("forward", 1)
    assert re.fullmatch(r"[0-3](\.up|\.down)?", result.oom.module)
    assert re.search(r"too_large\.py:1\d$", result.oom.source)
    assert result.oom.message.startswith("CUDA out of memory. Tried to allocate 256.00 MiB")


@virtual
def test_a_failure_comes_with_the_scripts_own_frames(train):
    (result,), _ = train("crash.py")

    assert result.outcome == "failed"
    assert "crash.py:8 in forward" in result.message
    assert "torch/nn" not in result.message
    assert result.message.splitlines()[-1].startswith("RuntimeError: mat1 and mat2 shapes")


@virtual
def test_a_script_without_an_end_is_given_up_and_its_place_told(train):
    (result,), _ = train("never.py", timeout_seconds=2.0)

    assert result.outcome == "timed_out"
    assert re.search(r"within 2 s; it was at .*never\.py:\d+", result.message)


@virtual
def test_one_process_is_a_rank_without_peers_and_needs_what_all_of_them_need(train):
    # GIVEN DDP over 2 ranks  WHEN rank 1 runs without the other, and both run together
    (lone,), said = train("ranks.py", ranks=(1,), world_size=2, steps=2)
    both, heard = train("ranks.py", ranks=(0, 1), world_size=2, steps=2)

    # THEN the lone one makes up what it would hear, the others really hear it
    assert "met rank 1 rank 1" in said
    assert "[rank 0] met rank 0 rank 1" in heard
    # AND each needs the same (torch's watchdog of NCCL holds tensors a little longer, or does not)
    used = [result.memory[0] for result in (lone, *both)]
    assert len({gpu.reserved_bytes for gpu in used}) == 1
    assert max(gpu.allocated_bytes for gpu in used) <= 1.01 * min(gpu.allocated_bytes for gpu in used)
    assert [gpu.device for gpu in used] == [1, 0, 1]


@virtual
def test_small_values_are_true_and_unknown_shapes_are_bounded(train):
    (result,), said = train("values.py", steps=9)

    assert said[-5:] == [
        "lengths [2, 3] False 3",
        "positions torch.Size([5, 2]) [3, 1, 2, 2, 2] [0, 1, 2, 3]",
        "steps 3.0",
        f"bound torch.Size([{64 * 4096}]) torch.Size([{64 * 4096}, 2]) True",
        "scale 65536.0",
    ]
    assert result.outcome == "ran"
    assert not result.stopped
    assert any("which elements are selected" in note for note in result.notes)


def test_nothing_here_imports_torch_in_the_parent():
    code = "import sys, dnnmem.profilers.ranks; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"

@virtual
@pytest.mark.parametrize(
    ("how", "outcome", "words"),
    [
        ("raises", "failed", "ValueError: no gradient today"),
        ("leaves", "failed", "the script ended itself with exit code 5"),
        ("exits", "failed", "the script ended itself: enough"),
        ("dies", "failed", "the script left the process by itself, with exit code 6"),
        ("returns", "ran", ""),
    ],
)
def test_every_end_is_one_in_order_while_threads_live(train, how, outcome, words):
    (result,), said = train("ends.py", arguments=(how,))

    assert (result.outcome, words in result.message) == (outcome, True)
    assert not [line for line in said if "terminate called" in line]
