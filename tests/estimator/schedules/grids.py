"""Grids of any schedule, of about the sizes that are asked for."""

from __future__ import annotations

from dnnmem.estimator.plan_pipeline import CHUNKS
from dnnmem.estimator.schedules import SCHEDULES


def made(name, p, m, v=2):
    """A grid of at least these sizes that the schedule can do."""
    if name in {"dualpipe", "chimera"}:
        p += p % 2
    least = {"dualpipe": 2 * p, "dualpipev": 2 * p, "2bw": p}.get(name, 1)
    unit = p if name in {"interleaved", "chimera"} else 2 if name in {"gems", "dualpipe"} else 1
    m = -(-max(m, least) // unit) * unit
    return SCHEDULES[name](p, m, v if name == "interleaved" else CHUNKS.get(name, 1)), p, m
