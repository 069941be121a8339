"""Launchers with settings of their own; that of accelerate is its own code where it is installed, else made up."""

import importlib.util
import os
import sys

import pytest

from dnnmem.cli.cache import cache_folder
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.script_command import parse_command
from dnnmem.profilers.script_launcher import read_launcher
from dnnmem.profilers.virtual_gpu.launch import unavailable

virtual = pytest.mark.skipif(bool(unavailable()), reason=f"no virtual GPU here: {unavailable()}")

LAUNCHER = """
import os, subprocess, sys
def main():
    words = sys.argv[1:]
    if "--run" in words:
        import argparse, torch.distributed.run
        run = argparse.Namespace(no_python=False, module=True, training_script="pkg.train",
                                 training_script_args=["--a"], nproc_per_node=4, nnodes=2)
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        os.environ["ACCELERATE_DYNAMO_BACKEND"] = "no"
        torch.distributed.run.run(run)
    elif "--wrong" in words:
        sys.exit("error: unrecognized arguments: --wrong")
    elif "--pdsh" in words:
        subprocess.Popen(["mpirun", "-n", "2", "python", "train.py"])
    else:
        subprocess.Popen([sys.executable, "train.py"], env={**os.environ, "A": "1"})
"""
"""Behaves as `accelerate launch` does: torchrun for many processes, a process of its own for one."""


@pytest.fixture(name="read")
def _read(tmp_path):
    """Reads a command of a launcher that is made up and stands where accelerate does."""
    place = tmp_path / "accelerate" / "commands"
    place.mkdir(parents=True)
    (place.parent / "__init__.py").write_text("")
    (place / "__init__.py").write_text("")
    (place / "accelerate_cli.py").write_text(LAUNCHER)

    def read(words, *, path=tmp_path, gpus=None):
        base = {**os.environ, "PYTHONPATH": str(path)}
        command = parse_command(words.split())
        return read_launcher(
            command, gpu=find_device("a100-80gb"), gpus=gpus, base=base, cache=cache_folder(os.environ)
        )

    return read


@virtual
def test_what_a_launcher_gives_to_torchrun_is_taken_with_its_settings(read):
    command = read("A=b accelerate launch --run")

    assert (command.script, command.is_module, command.arguments) == ("pkg.train", True, ("--a",))
    assert (command.ranks, command.ranks_per_node) == (8, 4)
    assert command.environment["A"] == "b"
    assert command.environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    # AND the settings that are on are told
    assert "8 processes of pkg.train" in command.notes[0]
    assert "ACCELERATE_MIXED_PRECISION=bf16" in command.notes[0]
    assert "DYNAMO" not in command.notes[0]


@virtual
def test_one_process_that_a_launcher_starts_is_taken_too(read):
    command = read("accelerate launch")

    assert (command.script, command.ranks, command.environment["A"]) == ("train.py", None, "1")


@virtual
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("accelerate launch --wrong", "unrecognized arguments: --wrong"),
        ("accelerate launch --pdsh", "would start mpirun"),
        ("accelerate config", "accelerate config starts no training"),
    ],
)
def test_what_a_launcher_refuses_or_cannot_be_run_here_is_told(read, words, said):
    with pytest.raises(UsageError, match=said) as caught:
        read(words)

    assert caught.value.hint


@virtual
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="it is installed")
def test_a_launcher_that_is_not_installed_is_named_with_the_way_out(read):
    with pytest.raises(UsageError, match="No module named 'deepspeed'") as caught:
        read("deepspeed --num_gpus 2 train.py")

    assert "pip install deepspeed" in caught.value.hint
    assert sys.executable in caught.value.message


@virtual
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
def test_accelerates_own_file_of_settings_is_read_by_its_own_code(read, tmp_path):
    config = tmp_path / "fsdp.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\n"
        "num_machines: 1\nnum_processes: 2\nfsdp_config:\n  fsdp_version: 2\n"
    )

    command = read(f"accelerate launch --config_file {config} train.py --lr 1", path="")

    assert (command.script, command.arguments, command.ranks) == ("train.py", ("--lr", "1"), 2)
    assert command.environment["FSDP_VERSION"] == "2"
