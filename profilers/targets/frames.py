"""Which lines of the user's own code led to an error: a traceback without torch's, dnnmem's and the libraries' frames.

    Traceback (most recent call last)                model.py:12 in forward
      worker.py, step.py, torch/nn/module.py    ->       return self.fc(x)
      model.py:12, torch/nn/linear.py               RuntimeError: mat1 and mat2 shapes cannot be multiplied
    RuntimeError: mat1 and mat2 ...

>>> try:
...     _ = 1 / 0
... except ZeroDivisionError as error:
...     print(trim_traceback(error, ()))
ZeroDivisionError: division by zero
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

from dnnmem.estimator import errors

FRAMES_SHOWN = 8
"""Frames nearest to the error that are kept; endless recursion has a thousand."""

NO_GPU = (
    "Expected all tensors to be on the same device",
    "Torch not compiled with CUDA",
    "No CUDA GPUs",
    "NVIDIA driver",
)
"""What torch says where a program names a device that is not there."""

_NOT_THEIRS = (
    Path(sysconfig.get_paths()["stdlib"]).resolve(),
    Path(__file__).resolve().parents[1],
    Path(errors.__file__).resolve().parent,
)
"""The standard library, dnnmem.profilers and dnnmem.estimator: never the user's, wherever these folders lie."""


def trim_traceback(exc: BaseException, user_files: Iterable[str]) -> str:
    """The error with the frames that lie in `user_files` (files, or folders with all below them), innermost last.

    Library folders inside of them, such as a virtual environment, are left out. Without any frame of the user's, the
    last line of another library than torch and dnnmem stands in, and without that the error alone.
    """
    last = "".join(traceback.format_exception_only(type(exc), exc)).rstrip()
    if isinstance(exc, SyntaxError):
        return last
    roots = [os.path.realpath(file) for file in user_files]
    stack = traceback.extract_tb(exc.__traceback__)
    frames = [frame for frame in stack if is_user_file(frame.filename, roots)]
    if not frames:
        frames = [frame for frame in stack if _is_other_library(frame.filename)][-1:]
    lines = [f"... {len(frames) - FRAMES_SHOWN} more of your frames above"] if len(frames) > FRAMES_SHOWN else []
    for frame in frames[-FRAMES_SHOWN:]:
        lines.append(f"{_shorten(frame.filename)}:{frame.lineno} in {frame.name}")
        lines.append(f"    {frame.line}")
    return "\n".join([*lines, last])


def device_hint(text: str) -> str:
    """The way out of an error that comes of a device which the program itself names; empty for others."""
    if any(mark in text for mark in NO_GPU):
        return (
            "leave devices to dnnmem: make_model and make_batch return what they build without .cuda() or .to(device); "
            "or give --device virtual"
        )
    return ""


def is_user_file(filename: str, roots: Iterable[str]) -> bool:
    """Whether a frame's file is one of `roots` or below one of them (absolute, resolved), libraries left out."""
    if filename.startswith("<"):
        return False
    path = Path(os.path.realpath(filename))
    if str(path) in roots:
        return True
    below = [path.relative_to(root) for root in roots if path.is_relative_to(root)]
    return any(not _in_packages(rest) for rest in below) and not any(path.is_relative_to(own) for own in _NOT_THEIRS)


def _in_packages(path: Path) -> bool:
    return any(part in {"site-packages", "dist-packages"} for part in path.parts)


def _is_other_library(filename: str) -> bool:
    path = Path(filename)
    return _in_packages(path) and "torch" not in path.parts and not any(path.is_relative_to(own) for own in _NOT_THEIRS)


def _shorten(filename: str) -> str:
    try:
        shorter = os.path.relpath(filename)
    except ValueError:  # another drive
        return filename
    return shorter if not shorter.startswith("..") else filename
