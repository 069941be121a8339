"""Which of the user's own lines a thread is at: stacks of Python frames, innermost first. Imports no torch."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from dnnmem.profilers.targets.frames import is_user_file


def find_source(frames: Sequence[FrameType], roots: Sequence[str]) -> str:
    """`file:line` of the innermost frame in the user's own files (`roots`); empty if there is none."""
    first = next((f for f in frames if is_user_file(f.f_code.co_filename, roots)), None)
    return "" if first is None else f"{_shorten(first.f_code.co_filename)}:{first.f_lineno}"


def main_frames() -> list[FrameType]:
    """The main thread's stack."""
    return list(frames_from(sys._current_frames().get(threading.main_thread().ident or 0)))


def frames_from(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and all that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _shorten(path: str) -> str:
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118 - compared with co_filename, a str
    return path.removeprefix(here)
