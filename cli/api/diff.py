"""`dnnmem.diff`: what grew between two steps, from Python."""

from __future__ import annotations

import os
from pathlib import Path

from dnnmem.cli.api.shown import ShownDifference, ShownProfile, shown
from dnnmem.cli.commands.diff import load_side
from dnnmem.estimator.diff import Side, compare
from dnnmem.estimator.profile import Profile

Step = str | os.PathLike[str] | Profile
"""One of the two: a profile, or a file as on the command line."""


def diff(before: Step, after: Step, *, gpu: str | None = None) -> ShownDifference:
    """What `after` needs more or less than `before`, by part, module and kind, and since which line.

    Args: profiles of `dnnmem.profile`, or files: a saved `*.trace.json.gz`, a memory snapshot, a profile that `--json`
    wrote, held against `gpu`. Raises a `DnnmemError`.
    """
    return shown(ShownDifference, compare(_side(before, gpu), _side(after, gpu)))


def _side(step: Step, gpu: str | None) -> Side:
    if isinstance(step, Profile):
        return Side(profile=step, trace=step.trace if isinstance(step, ShownProfile) else None)
    return load_side(Path(step), gpu)
