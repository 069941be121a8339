"""A file that is written whole or not at all, and only where a file is.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> write_whole(folder / "report.json", b"{}")
>>> [path.name for path in folder.iterdir()]
['report.json']
"""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name beside `path`, then rename it; raises `OSError` if that fails.

    A link stays, and what it names is written. What is no file, `/dev/null` or the pipe of `--json >(jq)`, stays what
    it is, and takes the bytes as they come.
    """
    if is_stream(path):
        path.write_bytes(data)
        return
    place = path.resolve()
    partial = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def is_stream(path: Path) -> bool:
    """Whether `path` is there and neither a file nor a folder: a device, a pipe, a terminal.

    >>> is_stream(Path(os.devnull)), is_stream(Path(__file__).parent), is_stream(Path("no such file"))
    (True, False, False)
    """
    return path.exists() and not path.is_file() and not path.is_dir()
