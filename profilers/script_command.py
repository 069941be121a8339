"""What a person would type to train, understood: `train.py ARGS`, `python -m pkg.train`, `torchrun ... train.py`.

>>> command = parse_command(["torchrun", "--nproc-per-node=8", "--nnodes", "2", "train.py", "--lr", "1"])
>>> command.script, command.arguments, command.ranks, command.ranks_per_node
('train.py', ('--lr', '1'), 16, 8)
>>> parse_command(["python", "-m", "pkg.train"]).is_module
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from dnnmem.estimator.errors import UsageError

NODE = 8
"""Ranks of a node where nobody says otherwise."""

_EXAMPLE = "dnnmem run -- train.py --batch 8, or dnnmem run -- torchrun --nproc-per-node 8 train.py"
_LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")
_FLAGS = frozenset({
    "--standalone", "--no-python", "--no_python", "--use-env", "--use_env", "--run-path", "--run_path",
    "--duplicate-stdout-filters", "--duplicate-stderr-filters", "--signals-to-handle",
})  # fmt: skip
"""Options of torchrun that take no value."""
_PYTHON_FLAGS = frozenset("bBdEhiIOPqsSuvVx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program and how many processes it asks for."""

    script: str
    """Path of the script, or dotted name of the module."""
    is_module: bool = False
    """True if `script` is a module's name."""
    arguments: tuple[str, ...] = ()
    """What comes after it."""
    ranks: int | None = None
    """Processes that a launcher would start, on all nodes; None = no launcher was named."""
    ranks_per_node: int = NODE
    """Of them on one node."""


def parse_command(words: Sequence[str]) -> Command:
    """The program in `words`; raises `UsageError` where there is none, or for a launcher that is not known."""
    if not words:
        raise UsageError("no script is named; it comes after the options", hint=_EXAMPLE)
    first, rest = words[0], list(words[1:])
    name = PurePath(first).name
    if name == "torchrun":
        return _torchrun(rest)
    if name.startswith("python") and not name.endswith(".py"):
        return _python(rest)
    if name in {"accelerate", "deepspeed", "horovodrun", "mpirun", "srun"}:
        raise UsageError(f"{name} is a launcher that dnnmem does not know", hint=f"write what it starts: {_EXAMPLE}")
    if first == "-m":
        return _module(rest)
    if first.startswith("-"):
        raise UsageError(f"{first} stands where the script's name should be", hint=_EXAMPLE)
    return Command(script=first, arguments=tuple(rest))


def _python(words: list[str]) -> Command:
    """What comes after `python`: flags of the interpreter, then -m module or a script."""
    while words and words[0].startswith("-") and words[0] != "-m":
        flag = words.pop(0)
        if flag in {"-W", "-X"} and words:
            words.pop(0)
        elif flag == "-c" or not (set(flag[1:]) <= _PYTHON_FLAGS or flag[:2] in {"-W", "-X"}):
            raise UsageError(f"python {flag} is not a script", hint=_EXAMPLE)
    return parse_command(words)


def _module(words: list[str]) -> Command:
    if not words:
        raise UsageError("-m names no module", hint="dnnmem run -- -m package.train")
    if words[0] in _LAUNCHERS:
        return _torchrun(words[1:])
    return Command(script=words[0], is_module=True, arguments=tuple(words[1:]))


def _torchrun(words: list[str]) -> Command:
    """What comes after `torchrun`: its own options up to the first word that is none."""
    per_node, nodes, is_module = "1", "1", False
    while words and words[0].startswith("-"):
        option, equals, value = words.pop(0).partition("=")
        if option in {"-m", "--module"}:
            is_module = True
            continue
        if option in _FLAGS:
            continue
        if not equals:
            value = words.pop(0) if words else ""
        key = option.lstrip("-").replace("_", "-")
        if key == "nproc-per-node":
            per_node = value
        elif key == "nnodes":
            nodes = value
    if not words:
        raise UsageError("torchrun names no script", hint=_EXAMPLE)
    count = NODE if per_node in {"gpu", "auto"} else _number("--nproc-per-node", per_node)
    command = Command(script=words[0], is_module=is_module, arguments=tuple(words[1:]))
    ranks = count * _number("--nnodes", nodes.rpartition(":")[2])
    return replace(command, ranks=ranks, ranks_per_node=count)


def _number(option: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UsageError(f"torchrun {option} is {text!r}; it must be a number of at least 1", hint=_EXAMPLE)
    return int(text)
