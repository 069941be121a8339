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
     "torchrun --nproc-per-node x t.py", "accelerate launch train.py", "python"],
)  # fmt: skip
def test_what_is_no_script_is_refused_with_an_example(words):
    with pytest.raises(UsageError) as caught:
        parse_command(words.split())

    assert "dnnmem run" in caught.value.hint
