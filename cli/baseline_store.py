"""The baseline's file on disk: read whole or refused, replaced whole or not at all, by one job at a time.

Jobs that update it at once take turns by a lock on its folder, read what the other has written, and change only the
steps that they measured. A killed one leaves the old file, or the new one; what else it left the next one removes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dnnmem.cli.export.files import write_atomic
from dnnmem.estimator.baseline import Entry
from dnnmem.estimator.baseline_file import MOST_BYTES, from_text, to_text
from dnnmem.estimator.errors import UsageError

_IGNORED = "# what a killed job left; the next one removes it\n.*.tmp\n"


def load_baseline(path: Path) -> dict[str, Entry] | None:
    """Entries by key; None if there is no file. Raises `UsageError` for one that cannot be read or is no baseline."""
    try:
        if not path.exists():
            return None
        if path.is_dir() or path.stat().st_size > MOST_BYTES:
            what = (
                "is a folder" if path.is_dir() else f"has {path.stat().st_size} bytes, and a baseline some KiB a step"
            )
            raise UsageError(f"{path} {what}", hint="name another file: --baseline FILE")
        text = path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{path} is no text in UTF-8", hint="remove the file, then write it anew: dnnmem check --update-baseline"
        ) from None
    return from_text(text, str(path))


def update_baseline(path: Path, entries: Iterable[Entry]) -> None:
    """Put `entries` in the place of those with their keys; all others stay. Raises `UsageError`."""
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path.parent / ".gitignore", _IGNORED)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be made: {error.strerror or error}") from None
    with _alone(path.parent):
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # by one that was killed: nobody else is in here
            left.unlink(missing_ok=True)
        known = load_baseline(path) or {}
        known |= {entry.key.text: entry for entry in entries}
        write_atomic(path, to_text(known.values()))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Until the block ends no other job is in it, on systems that can lock a folder."""
    try:
        import fcntl
    except ImportError:  # no such lock on this system: the last one wins, whole
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
