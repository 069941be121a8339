"""Child processes as the parent sees them, started in a group of their own and ended with all that they started.

Imports no torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO


def start(
    command: Sequence[str], environment: Mapping[str, str], *, keep: Sequence[int] = (), apart: bool = False
) -> subprocess.Popen[bytes]:
    """Start a child without input; it inherits the descriptors `keep`.

    Its output and errors come from one pipe, or `apart` from two.
    """
    return subprocess.Popen(  # noqa: S603 - our own module
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if apart else subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
        pass_fds=keep,
    )


def follow(stream: IO[bytes], say: Callable[[str], None]) -> threading.Thread:
    """Say each line of `stream` from another thread, which ends with it."""

    def read() -> None:
        with stream:
            for line in stream:
                say(line.decode(errors="replace").rstrip("\n"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def end(child: subprocess.Popen[bytes]) -> None:
    """End the child and what it started; does nothing if all are gone."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    elif child.poll() is None:
        child.kill()
    child.wait()
