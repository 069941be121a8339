"""One process as one rank of many, on the CPU: in a process of its own, since it changes torch for good."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, torch
from torch import distributed
from dnnmem.profilers.script_groups import Groups
from dnnmem.profilers.script_request import ScriptRequest
os.environ.update(RANK="5", WORLD_SIZE="1024", MASTER_ADDR="nowhere.invalid", MASTER_PORT="1")
groups = Groups(ScriptRequest(script="x", rank=5, world_size=1024))
{body}
"""


@pytest.fixture(name="alone")
def _alone():
    """Output of a program that runs as rank 5 of 1024."""

    def run(body):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    return run


def test_nobody_is_waited_for(alone):
    body = """
distributed.init_process_group("gloo")
print(distributed.get_rank(), distributed.get_world_size())
distributed.barrier()
group = distributed.new_group([1, 5, 9])
print(distributed.get_world_size(group), distributed.get_rank(group))
everyone = [None] * 3
distributed.all_gather_object(everyone, {"loss": 1}, group=group)
print(everyone)
"""
    assert alone(body) == ["5 1024", "3 1", "[{'loss': 1}, {'loss': 1}, {'loss': 1}]"]


def test_one_of_the_spawned_processes_runs_in_place(alone):
    body = """
import torch.multiprocessing as mp
def main(rank, world):
    distributed.init_process_group("gloo", init_method="tcp://nowhere.invalid:1", rank=rank, world_size=world)
    print(rank, distributed.get_world_size())
mp.spawn(main, args=(8,), nprocs=8)
print(groups.notes())
"""
    first, notes = alone(body)

    assert first == "5 8"
    assert "of 8 spawned processes, one was run" in notes


def test_waiting_for_another_ranks_object_is_an_error_that_says_what_to_do(alone):
    body = """
distributed.init_process_group("gloo")
try:
    distributed.recv_object_list([None], src=4)
except Exception as error:
    print(error.hint)
"""
    assert alone(body) == ["--rank all runs all of them"]
