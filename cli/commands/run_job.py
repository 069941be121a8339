"""What `dnnmem run` was asked for, checked as far as that needs no script: before any child process starts.

>>> job = prepare_run(["torchrun", "--nproc-per-node", "8", "-m", "train"], {"gpu": "a100-80gb"}, {}, folder=Path("/"))
>>> job.run.world_size, job.run.ranks, job.run.gpu.name
(8, (0,), 'a100-sxm-80gb')
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.cli.commands.job import SAVED
from dnnmem.cli.commands.outputs import Output, plan_outputs
from dnnmem.cli.config import Settings, blame, resolve
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.units import parse_bytes
from dnnmem.profilers.ranks import ScriptRun, parse_ranks
from dnnmem.profilers.script_command import NODE, Command, parse_command
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.virtual_gpu.launch import DEFAULT_GPU

if TYPE_CHECKING:
    from dnnmem.estimator.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJob:
    """A checked command line."""

    words: tuple[str, ...]
    """The script and its arguments, as typed."""
    run: ScriptRun
    """What to run."""
    outputs: tuple[Output, ...]
    """Where the report goes."""
    save: Path | None = None
    """Where the recorded step goes."""
    layers: bool = True
    """Whether to record the last step in a second run."""
    depth: int | None = None
    """`--depth`."""
    everything: bool = False
    """`--all`."""
    notes: tuple[str, ...] = ()
    """What was taken from a launcher's settings, in sentences."""


def prepare_run(
    words: Sequence[str],
    typed: Mapping[str, int | float | str | None],
    environ: Mapping[str, str],
    *,
    folder: Path,
    gpus: int | None = None,
    rank: str | None = None,
    steps: int = 3,
    memory: str | None = None,
    json: str | None = None,
    save: Path | None = None,
    layers: bool = True,
    everything: bool = False,
    cache: Path | None = None,
) -> RunJob:
    """A job from what was typed, the environment and the settings file of `folder`; raises `UsageError`.

    A launcher with settings of its own is asked for them in a child process, on a virtual GPU that `cache` keeps.
    """
    settings = resolve(typed, folder=folder, environ=environ)
    command = parse_command(words)
    if command.launcher:
        from dnnmem.profilers.script_launcher import read_launcher

        command = read_launcher(command, gpu=_gpu(settings, memory), gpus=gpus, base=environ, cache=cache)
    _check_script(command, folder)
    if save is not None and not save.name.endswith(SAVED):
        raise UsageError(f"--save {save}: the name of a saved trace ends with {SAVED}")
    if save is not None and not layers:
        raise UsageError("--save keeps the recorded step, and --no-layers records none", hint="give one of them")
    try:
        return RunJob(
            words=tuple(words),
            run=_script_run(command, settings, gpus=gpus, rank=rank, steps=steps, memory=memory),
            outputs=plan_outputs(form=None, default="table", json=json, csv=None),
            save=save,
            layers=layers,
            depth=_depth(settings),
            everything=everything,
            notes=command.notes,
        )
    except UsageError as error:
        raise blame(error, settings) from error


def _check_script(command: Command, folder: Path) -> None:
    if command.is_module or (folder / command.script).is_file():
        return
    found = shutil.which(command.script) if "/" not in command.script else None
    hint = "the script comes after the options of dnnmem run"
    if found is not None:
        hint = f"{found} is a command; name the script or the module that it starts: dnnmem run -- -m package.train"
    raise UsageError(f"there is no script {command.script}", hint=hint)


def _script_run(
    command: Command, settings: Settings, *, gpus: int | None, rank: str | None, steps: int, memory: str | None
) -> ScriptRun:
    if gpus is not None and command.all_gpus:
        command = replace(command, ranks=gpus, ranks_per_node=min(gpus, NODE))
    if gpus is not None and command.ranks not in {None, gpus}:
        raise UsageError(
            f"--gpus is {gpus}, but the launcher starts {command.ranks} processes", hint="give one of them"
        )
    world_size = gpus or command.ranks or 1
    timeout = float(settings["timeout"].value) if "timeout" in settings else None
    if timeout is not None and not 0 < timeout < float("inf"):
        raise UsageError(f"--timeout is {timeout:g}; the time to wait must be more than 0 seconds")
    request = ScriptRequest(
        script=command.script,
        is_module=command.is_module,
        arguments=command.arguments,
        steps=steps,
        timeout_seconds=timeout,
        world_size=gpus if gpus is not None else world_size,
    )
    is_job = command.ranks is not None or world_size > 1 or rank is not None
    return ScriptRun(
        request=request,
        gpu=_gpu(settings, memory),
        ranks=parse_ranks(rank or "0", world_size) if is_job else None,
        world_size=world_size,
        ranks_per_node=command.ranks_per_node,
        environment=command.environment,
        local_rank_option=command.local_rank_option,
    )


def _gpu(settings: Settings, memory: str | None) -> Device:
    """The GPU, with the memory that was asked for."""
    device = find_device(str(settings["gpu"].value) if "gpu" in settings else DEFAULT_GPU)
    if device.vendor != "nvidia":
        raise UsageError(f"--gpu {device.name} is made by {device.vendor}; virtual GPUs are NVIDIA's")
    if memory is None:
        return device
    nbytes = parse_bytes(memory)
    if nbytes < 1 << 30:
        raise UsageError(f"--memory is {memory}; a GPU has at least 1 GiB", hint="write the unit: --memory 95GiB")
    return replace(device, memory_bytes=nbytes, usable_bytes=nbytes)


def _depth(settings: Settings) -> int | None:
    if "depth" not in settings:
        return None
    depth = int(settings["depth"].value)
    if depth < 1:
        raise UsageError(f"--depth is {depth}; the model's own children have depth 1", hint="give --depth 1 or more")
    return depth
