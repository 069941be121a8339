"""What `dnnmem profile` was asked for, checked as far as that needs no model: before the child process starts.

>>> prepare("model.py", {"batch": 8}, {}, folder=Path("/")).request.batch_size
8
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnmem.cli.commands.outputs import Output, choose, plan_outputs
from dnnmem.cli.config import Settings, blame, resolve
from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.request import Request, parse_args

if TYPE_CHECKING:
    from dnnmem.estimator.device import Device

DEVICES = ("auto", "cpu", "fake", "virtual", "cuda")
"""What `--device` takes."""

SAVED = ".trace.json.gz"
"""How the name of a saved trace ends."""

_RECORDED = ("batch", "seq", "optimizer", "device", "steps", "seed", "repeats", "timeout", "input", "arg")
"""Options that a saved trace has behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A checked command line."""

    target: str
    """What the user named."""
    request: Request | None
    """What to run; None for a saved trace."""
    device: Device | None
    """The GPU that `--gpu` names."""
    outputs: tuple[Output, ...]
    """Where the report goes."""
    save: Path | None = None
    """Where the trace goes."""
    timeout_seconds: float | None = None
    """When to give up; None = never."""
    depth: int | None = None
    """`--depth`."""
    everything: bool = False
    """`--all`."""


def prepare(
    target: str,
    typed: Mapping[str, int | float | str | None],
    environ: Mapping[str, str],
    *,
    folder: Path,
    inputs: Sequence[str] = (),
    args: Sequence[str] = (),
    json: str | None = None,
    csv: str | None = None,
    html: str | None = None,
    save: Path | None = None,
    everything: bool = False,
) -> Job:
    """A job from what was typed, the environment and the settings file of `folder`; raises `UsageError`."""
    settings = resolve(typed, folder=folder, environ=environ)
    form = typed.get("format")
    try:
        given = [
            *(key for key, value in typed.items() if value is not None),
            *_named(inputs, "input"),
            *_named(args, "arg"),
        ]
        device = _gpu(settings)
        return Job(
            target=target,
            request=_request(target, settings, given, inputs, args, gpu=device.name if device else None),
            device=device,
            outputs=plan_outputs(
                form=None if form is None else str(form),
                default=_text(settings, "format") or "table",
                json=json,
                csv=csv,
                html=html,
            ),
            save=_save(save),
            timeout_seconds=_positive(settings, "timeout", "the time to wait must be more than 0 seconds"),
            depth=_depth(settings, given, everything=everything),
            everything=everything,
        )
    except UsageError as error:
        raise blame(error, settings) from error


def _named(values: Sequence[str], name: str) -> list[str]:
    return [name] if values else []


def _request(
    target: str,
    settings: Settings,
    given: Sequence[str],
    inputs: Sequence[str],
    args: Sequence[str],
    *,
    gpu: str | None,
) -> Request | None:
    if not target.strip():
        raise UsageError("TARGET is empty; it names what to train", hint="dnnmem profile model.py, or hf:gpt2")
    if target.endswith(SAVED):
        vain = [f"--{name}" for name in _RECORDED if name in given]
        if vain:
            raise UsageError(
                f"{target} is a recorded step: {', '.join(vain)} cannot change it",
                hint="leave the option out, or name the model to record it again",
            )
        return None
    known: dict[str, Any] = {
        key: s.value for key, s in settings.items() if key in {"optimizer", "steps", "seed", "repeats"}
    }
    return Request(
        target=target,
        args=parse_args(args),
        batch_size=_integer(settings, "batch"),
        seq_len=_integer(settings, "seq"),
        inputs=tuple(inputs),
        device=choose("--device", _text(settings, "device") or "auto", DEVICES),
        gpu=gpu,
        gpu_file=_own_file(_text(settings, "gpu")),
        **known,
    )


def _own_file(gpu: str | None) -> str | None:
    """The file in `my.toml` or `my.toml:name`, absolute: the child may run elsewhere."""
    file, dot, _ = (gpu or "").partition(".toml")
    return os.path.abspath(file + dot) if dot else None  # noqa: PTH100 - the request holds a str


def _gpu(settings: Settings) -> Device | None:
    name = _text(settings, "gpu")
    if name is None:
        return None
    from dnnmem.estimator.devices import find_device

    return find_device(name)


def _save(path: Path | None) -> Path | None:
    if path is not None and not path.name.endswith(SAVED):
        raise UsageError(
            f"--save {path}: the name of a saved trace ends with {SAVED}", hint=f"--save {path.stem}{SAVED}"
        )
    return path


def _depth(settings: Settings, given: Sequence[str], *, everything: bool) -> int | None:
    if everything and "depth" in given:
        raise UsageError(
            "--depth and --all contradict each other: one sums modules, the other shows all", hint="give one"
        )
    depth = _positive(settings, "depth", "the model's own children have depth 1")
    return None if depth is None or everything else int(depth)


def _positive(settings: Settings, key: str, rule: str) -> float | None:
    if key not in settings:
        return None
    value = float(settings[key].value)
    if not 0 < value < float("inf"):
        raise UsageError(f"--{key} is {settings[key].value}; {rule}", hint=f"give --{key} 1 or more")
    return value


def _integer(settings: Settings, key: str) -> int | None:
    return int(settings[key].value) if key in settings else None


def _text(settings: Settings, key: str) -> str | None:
    return str(settings[key].value) if key in settings else None
