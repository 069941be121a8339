"""Scripts on virtual GPUs, end to end; each takes some seconds, most of them torch's import."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UnsupportedError, UsageError
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
    # GIVEN DDP over 2 ranks  WHEN rank 1 runs without the other, to its own end, and both run together
    (lone,), said = train("ranks.py", ranks=(1,), world_size=2, steps=99)
    both, heard = train("ranks.py", ranks=(0, 1), world_size=2, steps=2)

    # THEN the lone one makes up what it would hear, the others really hear it
    assert "met rank 1 rank 1" in said
    assert "[rank 0] met rank 0 rank 1" in heard
    # AND each needs the same (torch's watchdog of NCCL holds tensors a little longer, or does not)
    used = [result.memory[0] for result in (lone, *both)]
    assert len({gpu.reserved_bytes for gpu in used}) == 1
    assert max(gpu.allocated_bytes for gpu in used) <= 1.01 * min(gpu.allocated_bytes for gpu in used)
    assert [gpu.device for gpu in used] == [1, 0, 1]
    # AND what NCCL held counts, whether or not the script gave it up before its end
    assert not lone.stopped
    assert len({gpu.nccl_bytes for gpu in used}) == 1
    assert used[0].outside_bytes > used[0].nccl_bytes > 0


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
    assert result.facts["shapes_bounded"] >= 2


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


@virtual
def test_small_values_and_objects_go_from_rank_to_rank(train):
    results, said = train("collectives.py", ranks=(0, 1), world_size=2)

    assert [result.outcome for result in results] == ["ran", "ran"], results
    heard = [[line[9:] for line in said if line.startswith(f"[rank {rank}] ")] for rank in range(2)]
    both = [
        "sums [3, 20] [True, True]",
        *(f"torch.{name} 0.75 1.5" for name in ("float16", "bfloat16", "float32", "float64")),
        "told [6, 8]",
        "seen [[0, 9], [1, 9]]",
        "objects [0, 2000000]",
        "large ones wait for nobody True",
        "barriers wait True",
    ]
    for lines in heard:
        assert [line for line in lines if line in both] == both
    for line in ("part 1", "swapped [0, 10]", "from the left 1", "half 1 0"):
        assert line in heard[0]
    for line in ("part 3", "swapped [1, 11]", "from the left 0", "half 1 1"):
        assert line in heard[1]
    assert "words [{'a': 1}, None] ['a'] ['a', 'b']" in heard[0]
    assert "words [{'a': 1}, None] ['b'] None" in heard[1]


@virtual
def test_a_rank_of_a_pipeline_alone_learns_shapes_from_those_that_know_them(train):
    # GIVEN a pipeline of two stages, the first of which alone knows the shape of the batch
    script = {"arguments": ("1f1b", "2"), "world_size": 2, "steps": 2}

    # WHEN the last rank is asked for, and both
    (lone,), _ = train("pipeline.py", ranks=(1,), **script)
    both, _ = train("pipeline.py", ranks=(0, 1), **script)

    # THEN it needs what it needs among the others, and says who was run besides
    assert [result.outcome for result in (lone, *both)] == ["ran"] * 3, (lone, both)
    assert lone.memory == both[1].memory
    assert "to receive what ranks 0 send, those were run too" in lone.notes


@virtual
def test_one_rank_of_64_costs_one_process_and_a_small_job_needs_what_its_ranks_need_alone(train):
    # GIVEN FSDP over tensor parallelism  WHEN run as one rank of 64, as one of 4, and as all 4
    (last,), _ = train("parallel.py", arguments=("2d",), ranks=(63,), world_size=64, steps=2)
    (lone,), _ = train("parallel.py", arguments=("2d",), ranks=(1,), world_size=4, steps=2)
    four, _ = train("parallel.py", arguments=("2d",), ranks=(0, 1, 2, 3), world_size=4, steps=2)

    # THEN more ranks leave less to each, and one that runs alone needs what it needs among the others
    assert [result.outcome for result in (last, lone, *four)] == ["ran"] * 6
    assert last.memory[0].device == 7
    assert 0 < last.memory[0].allocated_bytes < lone.memory[0].allocated_bytes
    assert lone.memory == four[1].memory


@virtual
def test_the_rank_that_fails_is_told_from_those_that_only_waited_for_it(train, tmp_path):
    # GIVEN rank 1 that raises where rank 0 waits for it
    script = tmp_path / "waits.py"
    script.write_text(
        "import os, torch\n"
        "from torch import distributed\n"
        "torch.cuda.set_device(int(os.environ['LOCAL_RANK']))\n"
        "distributed.init_process_group('nccl')\n"
        "if distributed.get_rank(): raise ValueError('it is I')\n"
        "distributed.barrier()\n"
    )
    first, second = train(script, ranks=(0, 1), world_size=2)[0]

    assert (first.outcome, second.outcome) == ("ended", "failed")
    assert "it is I" in second.message
    assert "rank 1 had failed" in first.message


@virtual
def test_a_rank_that_waits_in_vain_says_for_whom(train, tmp_path):
    # GIVEN rank 1 that comes to its end without the collective that rank 0 calls
    script = tmp_path / "vain.py"
    script.write_text(
        "import os, torch\n"
        "from torch import distributed\n"
        "torch.cuda.set_device(int(os.environ['LOCAL_RANK']))\n"
        "distributed.init_process_group('nccl')\n"
        "count = torch.ones(1, dtype=torch.long, device='cuda')\n"
        "distributed.broadcast(count, 0)\n"
        "if not distributed.get_rank(): distributed.all_reduce(count); print(count.item())\n"
    )
    with pytest.raises(UnsupportedError, match="in ncclAllReduce, rank 0 waits for what rank 1 sends: it has ended"):
        train(script, ranks=(0, 1), world_size=2)


@virtual
def test_nothing_is_left_when_the_parent_or_a_rank_is_killed(root, tmp_path):
    # GIVEN two ranks that train for ever, and a parent of theirs
    mark = f"dnnmem-test-{os.getpid()}"
    command = [sys.executable, "-m", "dnnmem", "run", "--gpus", "2", "--rank", "all", "--steps", "100000000", "--"]
    script = root / "tests/data/scripts/ranks.py"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "MARK": mark}
    parent = subprocess.Popen(
        [*command, str(script), "forever"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in parent.stdout:
        if "step 2" in line:
            break
    running = processes_with(mark)
    assert len(running) >= 3

    # WHEN the parent is killed
    parent.kill()
    parent.wait()
    parent.stdout.close()

    # THEN all that it started ends by itself
    end = time.monotonic() + 30
    while (processes_with(mark) or any(tmp_path.iterdir())) and time.monotonic() < end:
        time.sleep(0.1)
    assert not processes_with(mark)
    assert not list(tmp_path.iterdir())


def processes_with(mark):
    """Processes that have it in their environment, and live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found
