"""Scripts that start processes themselves, on the CPU: in a process of its own, since it changes torch for good."""

import subprocess
import sys

import pytest

PROGRAM = """
import os
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.script_spawn import Spawned
import torch.multiprocessing as mp
spawned = Spawned(ScriptRequest(script="x", {request}))
def main(index, word):
    print(index, word)
{body}
print(*spawned.notes())
"""


@pytest.fixture(name="run")
def _run():
    """Output of a program that was started as `request` says."""

    def run(request, body):
        program = PROGRAM.format(request=request, body=body)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    return run


def test_a_lone_rank_runs_one_of_the_spawned_processes_and_says_so(run):
    said = run("rank=5, world_size=8", "mp.spawn(main, args=('here',), nprocs=8)")

    assert said == ["5 here", "of 8 spawned processes, one was run"]


def test_of_ranks_that_run_together_each_is_one_of_the_processes(run):
    body = "print(mp.start_processes(main, ('here',), 2, join=False).join())"

    assert run("rank=1, world_size=2, alone=False", body) == ["1 here", "True", ""]


def test_more_processes_than_ranks_are_refused_with_the_number_to_give(run):
    body = """
try:
    mp.spawn(main, ('here',), 4)
except Exception as error:
    print(error, error.hint, sep=chr(10))
"""
    said = run("rank=1, world_size=2, alone=False", body)

    assert said[0] == "the script starts 4 processes, and dnnmem has started 2 ranks of it"
    assert said[1].startswith("--gpus 4")


def test_torchruns_agent_called_from_python_runs_its_function_in_place(run):
    body = """
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2)
elastic_launch(config=config, entrypoint=lambda word: print(os.environ["RANK"], word))("here")
elastic_launch(config, main)(os.environ["RANK"], os.environ["WORLD_SIZE"])
"""
    assert run("rank=None", body)[:2] == ["0 here", "0 2"]


def test_a_process_that_is_not_watched_is_noted_but_for_a_librarys_worker(run):
    body = """
import shutil
for target in (main, shutil.which):
    process = mp.get_context("fork").Process(target=target, args=("0", "there"))
    process.start()
    process.join()
"""
    first, note = run("rank=0, world_size=2", body)

    assert first == "0 there"
    assert note.startswith("the script started main as a process of its own, which was not watched")
