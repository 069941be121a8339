"""Where a report's file goes: whole or not at all, and refused before the work starts if it cannot be written.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> write_atomic(folder / "report.json", "{}")
>>> [path.name for path in folder.iterdir()]
['report.json']
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.whole_file import is_stream, write_whole


def check_writable(path: Path, option: str) -> None:
    """Raise `UsageError` if `path` cannot be written; leaves no file behind."""
    folder = path.resolve().parent if path.is_symlink() else path.parent  # what a link names is written
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder, not a file", hint=f"name a file in it: {path / 'profile'}")
    if not folder.is_dir() and not is_stream(path):
        raise UsageError(f"{option} {path}: there is no folder {folder}", hint=f"make it first: mkdir -p {folder}")
    if path.exists() and not os.access(path, os.W_OK):
        raise UsageError(
            f"{option} {path}: this file may not be written", hint="name another file, or change its permissions"
        )
    if is_stream(path):
        return
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
    except OSError as error:
        raise UsageError(
            f"{option} {path}: cannot write in {folder}: {error.strerror}", hint="name another folder"
        ) from error
    os.close(handle)
    Path(name).unlink()


def write_atomic(path: Path, text: str) -> None:
    """Write `text` as `write_whole` does; raises `UsageError` if that fails."""
    try:
        write_whole(path, text.encode(errors="replace"))
    except OSError as error:
        raise UsageError(
            f"{path}: cannot write: {error.strerror or error}", hint="name another file or folder"
        ) from error
