"""Files and lines in what a blame says, for formats that point into the code.

>>> file_line("forward, aten.addmm, models/net.py:12"), file_line("before the step")
(('models/net.py', 12), None)
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dnnmem.estimator.baseline import Blame

_PLACE = re.compile(r"([^\s,()]+\.py):(\d+)")


def file_line(text: str) -> tuple[str, int] | None:
    """The last file and line that `text` names, None if it names none."""
    found = _PLACE.findall(text)
    return (found[-1][0], int(found[-1][1])) if found else None


def first_place(lines: Sequence[Blame]) -> tuple[str, int] | None:
    """Where the module that changed most is made, of those for which that is known."""
    return next((place for line in lines if (place := file_line(line.since))), None)


def in_repository(path: str) -> str:
    """`path`, from the current folder, as the repository around it calls it: what hosts of code need to find it."""
    full = Path(os.path.abspath(path))  # noqa: PTH100 - a link stays the link that git knows
    root = next((folder for folder in full.parents if (folder / ".git").exists()), None)
    return full.relative_to(root).as_posix() if root else path
