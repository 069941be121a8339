"""`offload.files`: what comes to the host goes on into files, and is read ahead: the second tier of Aupy et al. 2016.

    forward    GPU -> pinned memory -> file        a thread writes; the pinned memory then serves the next copy
    backward   file -> pinned memory -> GPU        a thread reads as soon as a fetch is asked for, a block ahead

Files lie in a folder of their own below the system's temporary one, which `TMPDIR` names: it has to be on a disk. Each
goes with what was saved, the folder with the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from dnnmem.estimator.errors import UnsupportedError


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """Bytes that are in a file, or will be when `written` is done."""

    path: Path
    """Of the file."""
    nbytes: int
    """Its size."""
    written: Future[None]
    """Raises what went wrong."""


@dataclass(slots=True, eq=False)
class Files:
    """Of one model. A thread of each direction keeps their order."""

    folder: TemporaryDirectory[str] = field(
        default_factory=lambda: TemporaryDirectory(prefix="dnnmem-activations-", ignore_cleanup_errors=True)
    )
    """Of all files."""
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "dnnmem-write"))
    """A thread."""
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "dnnmem-read"))
    """A thread."""
    numbers: count[int] = field(default_factory=count)
    """Names of files."""

    def __deepcopy__(self, _: object) -> Files:
        """A copy of the model has files of its own."""
        return Files()

    def write(self, host: Tensor, owner: object, *, ready: Callable[[], object], done: Callable[[], object]) -> File:
        """Write `host` when `ready` returns, then call `done`; the file goes with its `owner`."""
        path = Path(self.folder.name, str(next(self.numbers)))
        written = self.writer.submit(_write, path, host, ready, done)
        weakref.finalize(owner, self._remove, path).atexit = False
        return File(path, host.numel(), written)

    def read(self, file: File, host: Tensor, done: Callable[[], None]) -> Future[None]:
        """Read into `host` what is, or will be, in a file, then call `done`."""
        return self.reader.submit(_read, file, host, done)

    def _remove(self, path: Path) -> None:
        """After it is written."""
        self.writer.submit(path.unlink, missing_ok=True)


def _write(path: Path, host: Tensor, ready: Callable[[], object], done: Callable[[], object]) -> None:
    try:
        ready()
        path.write_bytes(host.numpy().data)
    except OSError as error:
        raise UnsupportedError(
            f"offload.files could not write {host.numel()} bytes into {path.parent}: {error.strerror or error}",
            hint="TMPDIR names a folder on a disk with room, or leave offload.files out",
        ) from None
    finally:
        done()


def _read(file: File, host: Tensor, done: Callable[[], None]) -> None:
    file.written.result()
    with file.path.open("rb") as opened:
        opened.readinto(host.numpy().data)
    done()
