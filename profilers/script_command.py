"""What a person would type to train, understood: `train.py ARGS`, `python -m pkg.train`, `torchrun ... train.py`.

>>> command = parse_command(["torchrun", "--nproc-per-node=8", "--nnodes", "2", "train.py", "--lr", "1"])
>>> command.script, command.arguments, command.ranks, command.ranks_per_node
('train.py', ('--lr', '1'), 16, 8)
>>> parse_command(["python", "-m", "pkg.train"]).is_module
True

A launcher with settings of its own is only named here; `script_launcher.py` has its own code read them.

>>> parse_command(["accelerate", "launch", "--config_file", "fsdp.yaml", "train.py"]).launcher
('accelerate', 'launch', '--config_file', 'fsdp.yaml', 'train.py')
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from dnnmem.estimator.errors import UsageError

NODE = 8
"""Ranks of a node where nobody says otherwise."""

_EXAMPLE = "dnnmem run -- train.py --batch 8, or dnnmem run -- torchrun --nproc-per-node 8 train.py"
_TORCHRUN = ("torchrun", "torch.distributed.run", "torch.distributed.launch")
_LAUNCHERS = {
    "accelerate": ("accelerate",),
    "accelerate.commands.accelerate_cli": ("accelerate",),
    "accelerate-launch": ("accelerate", "launch"),
    "accelerate.commands.launch": ("accelerate", "launch"),
    "deepspeed": ("deepspeed",),
    "ds": ("deepspeed",),
    "deepspeed.launcher.runner": ("deepspeed",),
    "fabric": ("fabric",),
    "lightning.fabric.cli": ("fabric",),
}
"""Commands and modules of launchers that have settings of their own."""
_UNKNOWN = ("horovodrun", "mpirun", "mpiexec", "srun", "ray", "colossalai", "composer")
_RUNNERS = ("uv", "poetry", "pipenv", "pdm", "hatch", "conda", "mamba", "pixi")
"""What starts a command in an environment."""
_SHELLS = ("sh", "bash", "zsh")
_VARIABLE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
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
    all_gpus: bool = False
    """True if `ranks` is one for each GPU of a node, however many that are."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the command sets for the script."""
    local_rank_option: str = ""
    """What a launcher puts before the script's arguments, followed by the local rank: `--local_rank=`."""
    launcher: tuple[str, ...] = ()
    """The whole command of a launcher that has still to be read; then nothing else is set but the environment."""
    notes: tuple[str, ...] = ()
    """What was taken from a launcher's settings, in sentences."""


def parse_command(words: Sequence[str]) -> Command:
    """The program in `words`; raises `UsageError` where there is none, or for a launcher that is not known."""
    if not words:
        raise UsageError("no script is named; it comes after the options", hint=_EXAMPLE)
    first, rest = words[0], list(words[1:])
    name = PurePath(first).name
    if _VARIABLE.fullmatch(first) or (name == "env" and rest):
        return _with_variables(words if name != "env" else rest)
    if name == "torchrun":
        return _torchrun(name, rest)
    if name in _LAUNCHERS:
        return Command(script="", launcher=(*_LAUNCHERS[name], *rest))
    if name.startswith("python") and not name.endswith(".py"):
        return _python(rest)
    if first == "-m":
        return _module(rest)
    _refuse(first, name, rest)
    return Command(script=first, arguments=tuple(rest))


def _refuse(first: str, name: str, rest: list[str]) -> None:
    """Raise `UsageError` for what is no Python script."""
    if name in _UNKNOWN:
        raise UsageError(f"{name} is a launcher that dnnmem does not know", hint=f"write what it starts: {_EXAMPLE}")
    if name in _RUNNERS:
        raise UsageError(
            f"{name} starts a command in an environment, and dnnmem has to be in that environment too",
            hint=f"start dnnmem with it: {name} run dnnmem run -- {' '.join(rest[1:]) or 'train.py'}",
        )
    if name in _SHELLS or name.endswith(".sh"):
        raise UsageError(f"{first} runs a shell script", hint=f"write the command in it that trains: {_EXAMPLE}")
    if name.endswith(".ipynb"):
        raise UsageError(
            f"{first} is a notebook",
            hint=f"make a script of it: jupyter nbconvert --to script {first}; then dnnmem run -- {name[:-6]}.py",
        )
    if first.startswith("-"):
        raise UsageError(f"{first} stands where the script's name should be", hint=_EXAMPLE)


def _with_variables(words: Sequence[str]) -> Command:
    """`NAME=value ... command`, as a shell reads it."""
    variables: dict[str, str] = {}
    rest = list(words)
    while rest and (found := _VARIABLE.fullmatch(rest[0])):
        variables[found[1]] = found[2]
        del rest[0]
    command = parse_command(rest)
    return replace(command, environment={**variables, **command.environment})


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
    if words[0] in _TORCHRUN:
        return _torchrun(words[0], words[1:])
    if words[0] in _LAUNCHERS:
        return Command(script="", launcher=(*_LAUNCHERS[words[0]], *words[1:]))
    return Command(script=words[0], is_module=True, arguments=tuple(words[1:]))


def _torchrun(name: str, words: list[str]) -> Command:
    """What comes after `torchrun`: its own options up to the first word that is none."""
    per_node, nodes, is_module, told = "1", "1", False, name.endswith(".launch")
    while words and words[0].startswith("-"):
        option, equals, value = words.pop(0).partition("=")
        if option in {"-m", "--module"}:
            is_module = True
            continue
        if option in _FLAGS:
            told = told and option not in {"--use-env", "--use_env"}
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
    command = Command(script=words[0], is_module=is_module, arguments=tuple(words[1:]))
    return with_processes(command, per_node, nodes, local_rank_option="--local-rank=" if told else "")


def with_processes(command: Command, per_node: str, nodes: str, *, local_rank_option: str = "") -> Command:
    """`command` started `per_node` times on each node, as torchrun reads these; raises `UsageError` for no numbers."""
    is_all = per_node in {"gpu", "auto"}
    count = NODE if is_all else _number("--nproc-per-node", per_node)
    ranks = count * _number("--nnodes", nodes.rpartition(":")[2])
    return replace(command, ranks=ranks, ranks_per_node=count, all_gpus=is_all, local_rank_option=local_rank_option)


def _number(option: str, text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UsageError(f"torchrun {option} is {text!r}; it must be a number of at least 1", hint=_EXAMPLE)
    return int(text)
