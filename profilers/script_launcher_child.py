"""The child process that runs a launcher's own code up to the point where it would start the training processes.

    argv    FILE LAUNCHER WORD...    ->  FILE: one JSON object, see `Started`; or {"problem": ..., "hint": ...}

Nothing is read twice: the launcher's own parser and configuration files decide. What it would start is caught where
the libraries start it: `torch.distributed.run.run`, or `subprocess.Popen` called from the launcher's own modules.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ENTRIES = {
    "accelerate": ("accelerate.commands.accelerate_cli", "main"),
    "deepspeed": ("deepspeed.launcher.runner", "main"),
    "fabric": ("lightning.fabric.cli", "_main"),
}
"""The function behind each launcher's command."""

_STARTERS = ("accelerate.commands", "deepspeed.launcher")
"""Modules whose `subprocess.Popen` starts training processes."""
_NODE_LAUNCHER = "deepspeed.launcher.launch"
"""DeepSpeed's second stage, which starts the processes of one node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What a launcher would start."""

    words: list[str]
    """The command of rank 0: the interpreter and what follows it."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that it sets or changes."""
    per_node: int | str | None = None
    """Processes on one node, `gpu` for one on each GPU; None = one process, started as it is."""
    nodes: int | str = 1
    """Nodes, as torchrun takes them: 2, or 1:4."""
    local_rank_option: str = ""
    """Argument before the script's own that is followed by the local rank."""


class _Caught(BaseException):
    """Carries what would be started past all that would clean up after it."""

    def __init__(self, words: list[str], environment: dict[str, str], run: Any = None) -> None:
        super().__init__()
        self.words, self.environment, self.run = words, environment, run


def main(argv: list[str]) -> None:
    """Run the launcher named `argv[1]` with the words after it; writes `argv[0]`."""
    path, launcher, words = Path(argv[0]), argv[1], argv[2:]
    before = dict(os.environ)
    try:
        module, name = ENTRIES[launcher]
        entry = getattr(importlib.import_module(module), name)
    except ImportError as error:
        path.write_text(json.dumps({"missing": str(error)}))
        return
    caught = _catch(entry, [launcher, *words])
    if caught is not None and _NODE_LAUNCHER in caught.words:
        os.environ.update(caught.environment)
        place = caught.words.index(_NODE_LAUNCHER)
        caught = _catch(importlib.import_module(_NODE_LAUNCHER).main, caught.words[place:])
        if caught is not None:
            path.write_text(json.dumps(asdict(_of_deepspeed(caught, before))))
    elif caught is not None:
        path.write_text(json.dumps(asdict(_of_caught(caught, before))))


def _catch(entry: Callable[[], Any], argv: list[str]) -> _Caught | None:
    """What `entry` would start; None if it ends without."""
    from torch.distributed import run as torchrun

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
            if str(sys._getframe(1).f_globals.get("__name__", "")).startswith(_STARTERS):
                words = [args] if isinstance(args, str) else [str(word) for word in args]
                raise _Caught(words, dict(options.get("env") or os.environ))
            super().__init__(args, *rest, **options)

    def run(args: Any) -> None:
        raise _Caught([], dict(os.environ), args)

    real = subprocess.Popen
    subprocess.Popen = Popen  # type: ignore[misc]
    torchrun.run = run
    sys.argv = argv
    try:
        entry()
    except _Caught as caught:
        return caught
    finally:
        subprocess.Popen = real  # type: ignore[misc]
    return None


def _of_caught(caught: _Caught, before: dict[str, str]) -> Started:
    changed = _changed(caught.environment, before)
    if caught.run is None:
        return Started(words=caught.words, environment=changed)
    run = caught.run
    python = [] if run.no_python else [sys.executable, *(["-m"] if run.module else [])]
    return Started(
        words=[*python, run.training_script, *run.training_script_args],
        environment=changed,
        per_node=run.nproc_per_node,
        nodes=run.nnodes,
    )


def _of_deepspeed(caught: _Caught, before: dict[str, str]) -> Started:
    """DeepSpeed starts a node's processes one by one: the first one tells of all."""
    own = "--local_rank=0"
    told = caught.environment
    return Started(
        words=[word for word in caught.words if word != own],
        environment=_changed(told, before),
        per_node=int(told["LOCAL_SIZE"]) if "LOCAL_SIZE" in told else int(told["WORLD_SIZE"]),
        nodes=int(told.get("CROSS_SIZE", "1")),
        local_rank_option=own[:-1] if own in caught.words else "",
    )


def _changed(environment: dict[str, str], before: dict[str, str]) -> dict[str, str]:
    return {name: str(value) for name, value in environment.items() if before.get(name) != str(value)}


if __name__ == "__main__":
    main(sys.argv[1:])
