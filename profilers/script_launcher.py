"""What `accelerate launch`, `deepspeed` and `fabric run` would start, asked of their own code in a child process.

    accelerate launch --config_file fsdp.yaml train.py --lr 1
        -> script_launcher_child.py, on virtual GPUs, stopped where the processes would start
        -> Command(script="train.py", arguments=("--lr", "1"), ranks=2, environment={"FSDP_VERSION": "2", ...})

Imports no torch.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.children import end, follow, start
from dnnmem.profilers.script_command import NODE, Command, parse_command, with_processes
from dnnmem.profilers.virtual_gpu.launch import prepare

_SECONDS = 300.0
"""How long a launcher may take to say what it would start; importing it takes most of that."""
_POLL_SECONDS = 0.05
_LAST_LINES = 20
_INSTEAD = "dnnmem run -- torchrun --nproc-per-node 2 train.py"
_OUR_OWN = frozenset({
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR",
    "MASTER_PORT", "CROSS_RANK", "CROSS_SIZE", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "LD_LIBRARY_PATH", "_",
})  # fmt: skip
"""What dnnmem tells each process itself."""
_QUIET = frozenset({"OMP_NUM_THREADS", "PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR"})
_OFF = frozenset({"", "no", "false", "none", "default"})
"""Names and values that are not worth telling a person."""
_LONGEST = 120
"""Characters of a value that is shown."""


def read_launcher(
    command: Command, *, gpu: Device, gpus: int | None, base: Mapping[str, str], cache: Path | None = None
) -> Command:
    """The command that `command.launcher` would start, with its processes and its environment.

    Args: `gpus`: how many the launcher sees, None = a node's; `base`: the environment; `cache` keeps the virtual GPU.
    Raises `UsageError` if the launcher is not installed, refuses its words, or starts what cannot be run here.
    """
    name = command.launcher[0]
    _check(command.launcher)
    launch = prepare(gpu, {**base, **command.environment, "PYTHONUNBUFFERED": "1"}, count=gpus or NODE, cache=cache)
    said: deque[str] = deque(maxlen=_LAST_LINES)
    with tempfile.TemporaryDirectory(prefix="dnnmem-") as folder:
        path = Path(folder) / "started.json"
        _run([str(path), *command.launcher], launch.environment, said)
        started = json.loads(path.read_text()) if path.exists() else None
    if started is None:
        raise UsageError(f"{name} does not start a script:\n{_last(said)}", hint=f"{_title(command)} --help")
    if "missing" in started:
        raise UsageError(
            f"{_title(command)} cannot be read where dnnmem is installed: {started['missing']} ({sys.executable})",
            hint=f"install {name} there (pip install {name}), or name what it starts: {_INSTEAD}",
        )
    return _resolved(command, started, gpus)


def _check(words: tuple[str, ...]) -> None:
    needed = {"accelerate": "launch", "fabric": "run"}.get(words[0])
    if needed is not None and words[1:2] != (needed,):
        raise UsageError(
            f"{' '.join(words[:2])} starts no training; {words[0]} {needed} does",
            hint=f"dnnmem run -- {words[0]} {needed} train.py",
        )


def _run(words: list[str], environment: Mapping[str, str], said: deque[str]) -> None:
    """Run the child to its end, and hear what it says."""
    child = start([sys.executable, "-m", f"{__name__}_child", *words], environment)
    assert child.stdout is not None  # noqa: S101 - a pipe was asked for
    thread = follow(child.stdout, said.append)
    limit = time.monotonic() + _SECONDS
    try:
        while child.poll() is None and time.monotonic() < limit:
            time.sleep(_POLL_SECONDS)
    finally:
        end(child)
        thread.join(timeout=2)


def _resolved(command: Command, started: Mapping[str, Any], gpus: int | None) -> Command:
    """The command that is started, understood as if a person had typed it."""
    title = _title(command)
    try:
        found = parse_command(started["words"])
    except UsageError as error:
        raise UsageError(
            f"{title} would start {' '.join(started['words'][:3])}, which dnnmem cannot run: {error.message}",
            hint=f"name the script and its processes: {_INSTEAD}",
        ) from error
    told = {name: value for name, value in started["environment"].items() if name not in _OUR_OWN}
    if started["per_node"] is not None:
        option = started["local_rank_option"]
        found = with_processes(found, str(started["per_node"]), str(started["nodes"]), local_rank_option=option)
    return replace(found, environment={**command.environment, **told}, notes=(_note(title, found, told, gpus),))


def _note(title: str, found: Command, told: Mapping[str, str], gpus: int | None) -> str:
    """What was taken from the launcher: how many processes, and the settings that are on."""
    count = f"{found.ranks} process{'es' * (found.ranks != 1)}" if found.ranks else "one process"
    seen = f" (it was shown {NODE} GPUs; --gpus shows it others)" if gpus is None and found.ranks == NODE else ""
    on = [
        f"{name}={value}"
        for name, value in sorted(told.items())
        if name not in _QUIET and value.lower() not in _OFF and len(value) <= _LONGEST
    ]
    return f"{title} starts {count} of {found.script}{seen}" + (f", with {', '.join(on)}" if on else "")


def _title(command: Command) -> str:
    return " ".join(command.launcher[: 1 if command.launcher[0] == "deepspeed" else 2])


def _last(said: deque[str]) -> str:
    """The last lines that say something, of a traceback only its end."""
    lines = [line for line in said if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1]
    return "\n".join(lines[-6:]) or "it said nothing"
