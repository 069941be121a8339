import pytest

from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.script_command import parse_command


@pytest.mark.parametrize(
    ("words", "script", "arguments", "is_module", "ranks"),
    [
        ("train.py", "train.py", (), False, None),
        ("train.py --lr 1 -m x", "train.py", ("--lr", "1", "-m", "x"), False, None),
        ("python train.py -v", "train.py", ("-v",), False, None),
        ("/usr/bin/python3.11 -u -X dev train.py", "train.py", (), False, None),
        ("-m pkg.train --x", "pkg.train", ("--x",), True, None),
        ("python -m pkg.train", "pkg.train", (), True, None),
        ("torchrun train.py", "train.py", (), False, 1),
        ("torchrun --standalone --nproc_per_node 4 train.py a", "train.py", ("a",), False, 4),
        ("torchrun --nnodes=1:4 --nproc-per-node=8 --rdzv-endpoint h:1 -m pkg.train", "pkg.train", (), True, 32),
        ("python -m torch.distributed.run --nproc-per-node gpu train.py", "train.py", (), False, 8),
    ],
)
def test_what_a_person_would_type_is_understood(words, script, arguments, is_module, ranks):
    command = parse_command(words.split())

    assert (command.script, command.arguments, command.is_module, command.ranks) == (
        script,
        arguments,
        is_module,
        ranks,
    )


@pytest.mark.parametrize(
    "words",
    ["", "-m", "--lr 1 train.py", "python -c print()", "torchrun --nproc-per-node 8",
     "torchrun --nproc-per-node x t.py", "mpirun -n 2 python train.py", "bash train.sh", "train.ipynb",
     "uv run train.py", "A=1", "python"],
)  # fmt: skip
def test_what_is_no_script_is_refused_with_an_example(words):
    with pytest.raises(UsageError) as caught:
        parse_command(words.split())

    assert "dnnmem run" in caught.value.hint


@pytest.mark.parametrize(
    ("words", "launcher"),
    [
        ("accelerate launch train.py", "accelerate launch train.py"),
        ("/opt/bin/accelerate-launch --num_processes 2 train.py", "accelerate launch --num_processes 2 train.py"),
        ("python -m accelerate.commands.launch train.py", "accelerate launch train.py"),
        ("deepspeed --num_gpus 2 train.py", "deepspeed --num_gpus 2 train.py"),
        ("python -m deepspeed.launcher.runner train.py", "deepspeed train.py"),
        ("fabric run train.py", "fabric run train.py"),
    ],
)
def test_a_launcher_with_settings_of_its_own_is_left_for_its_own_code_to_read(words, launcher):
    assert parse_command(words.split()).launcher == tuple(launcher.split())


def test_variables_before_a_command_are_the_scripts():
    command = parse_command(["env", "A=1", "B=x=y", "python", "train.py", "C=2"])

    assert (command.script, command.arguments, dict(command.environment)) == (
        "train.py",
        ("C=2",),
        {"A": "1", "B": "x=y"},
    )


def test_torchs_old_launcher_tells_the_local_rank_as_an_argument_unless_told_not_to():
    old = "python -m torch.distributed.launch --nproc_per_node 2"

    assert parse_command(f"{old} train.py".split()).local_rank_option == "--local-rank="
    assert parse_command(f"{old} --use_env train.py".split()).local_rank_option == ""
