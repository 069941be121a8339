"""One process as one rank of many, on the CPU: in a process of its own, since it changes torch for good."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, torch
from torch import distributed
from dnnmem.profilers.script_groups import Groups
os.environ.update(RANK="5", WORLD_SIZE="1024", MASTER_ADDR="nowhere.invalid", MASTER_PORT="1")
groups = Groups()
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


def test_a_lone_rank_scatters_what_it_has_and_by_any_name_of_the_arguments(alone):
    body = """
distributed.init_process_group("gloo")
mine = [None]
distributed.scatter_object_list(scatter_object_output_list=mine, scatter_object_input_list=list(range(1024)), src=5)
print(mine)
got = [None] * 1024
distributed.gather_object("x", got, 5, None)
print(len(got), got[7])
"""
    assert alone(body) == ["[5]", "1024 x"]


def test_waiting_for_another_ranks_object_is_an_error_that_says_what_to_do(alone):
    body = """
distributed.init_process_group("gloo")
try:
    distributed.recv_object_list([None], src=4)
except Exception as error:
    print(error.hint)
"""
    assert alone(body) == ["--rank all runs all of them"]
