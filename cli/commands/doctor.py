"""`dnnmem doctor`: what this machine can do, and what it would need to do more. A bug report starts with its output."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Annotated, Any

import typer

from dnnmem import __version__
from dnnmem.estimator.errors import UnsupportedError

PROBE_SECONDS = 120.0
"""How long torch may take to load from a cold disk."""

LIBRARIES = ("torchvision", "timm", "transformers")
"""Optional, each for one kind of target."""


def doctor(
    *,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Wait this long for torch.")
    ] = PROBE_SECONDS,
) -> None:
    """Tell what this machine can do: versions, GPUs, and which devices work."""
    facts = ask_torch(timeout)
    for name, words in describe(facts):
        typer.echo(f"{name:<15} {words}".rstrip())
    if "error" in facts:
        raise UnsupportedError(
            f"torch does not work here: {facts['error']}", hint="install it anew: https://pytorch.org/get-started"
        )


def ask_torch(timeout_seconds: float) -> dict[str, Any]:
    """The facts of `probe`, or `{"error": ...}` if torch cannot be loaded, aborts or takes too long."""
    command = [sys.executable, "-m", "dnnmem.cli.commands.probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)  # noqa: S603 - our own module
    except subprocess.TimeoutExpired:
        return {"error": f"it did not load within {timeout_seconds:g} seconds"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"it ended with exit code {done.returncode}"]
        return {"error": last[0]}
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def describe(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines of the report: a name and what is to be said of it."""
    yield "dnnmem", __version__
    yield "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    if "torch" in facts:
        build = facts["cuda_build"] or facts["hip_build"]
        kind = "CUDA" if facts["cuda_build"] else "ROCm"
        built = f"built for {kind} {build}" if build else "built for CPU only"
        yield "torch", f"{facts['torch']}, {built}, loads in {facts['import_seconds']:.1f} s"
    for name in LIBRARIES:
        yield name, _version(name)
    yield "NVIDIA driver", _driver()
    yield "", ""
    yield from _devices(facts)


def _devices(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from dnnmem.profilers.virtual_gpu.build import find_compiler
    from dnnmem.profilers.virtual_gpu.launch import unavailable

    if "torch" not in facts:
        yield "devices", "none: they all need torch"
        return
    yield "device cpu", "works"
    yield "device fake", f"does not work: {facts['fake']}" if facts["fake"] else "works"
    reason = unavailable()
    yield "device virtual", f"does not work: {reason}" if reason else f"works, built with {' '.join(find_compiler())}"
    gpus = ", ".join(f"{gpu['name']} ({gpu['nbytes'] / 2**30:.1f} GiB)" for gpu in facts["gpus"])
    yield "device cuda", f"works: {gpus}" if gpus else f"does not work: {_why_no_cuda(facts)}"


def _why_no_cuda(facts: Mapping[str, Any]) -> str:
    if facts.get("gpu_error"):
        return str(facts["gpu_error"])
    if not facts["cuda_build"]:
        return "this torch is not built for CUDA"
    return "no GPU that CUDA can use"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    """The driver's version, or why there is none."""
    try:
        import pynvml
    except ImportError:
        return "not known: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"none ({error})"
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()
