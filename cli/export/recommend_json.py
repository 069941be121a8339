"""Ranked plans as JSON, `dnnmem.recommend/1`. Bytes are integers, seconds are numbers, what is not known is null."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from dnnmem.estimator.plan_text import to_json as plan_to_json
from dnnmem.estimator.report import Candidate, Report

SCHEMA = "dnnmem.recommend/1"


def to_json(report: Report) -> str:
    """The report as indented JSON, a newline at its end."""
    return json.dumps(to_data(report), indent=2) + "\n"


def to_data(report: Report) -> dict[str, Any]:
    """The report as an object for JSON."""
    cluster = report.cluster
    return {
        "schema": SCHEMA,
        "target": report.target,
        "cluster": {"name": cluster.name, "gpu": cluster.device.name, "gpus": cluster.gpus},
        "objective": report.objective,
        "headroom": report.headroom,
        "usable_bytes": cluster.device.usable_bytes,
        "global_batch": report.global_batch,
        "considered": report.considered,
        "priced": report.priced,
        "search_seconds": report.search_seconds,
        "baseline": report.baseline and _candidate(report.baseline),
        "candidates": [_candidate(candidate) for candidate in report.candidates],
        "nothing_fits": report.nothing_fits or None,
        "notes": list(report.notes),
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    found = candidate.estimate
    plan = plan_to_json(found.plan)
    del plan["schema"]
    return {
        "rank": candidate.rank,
        "plan": plan,
        "techniques": list(candidate.techniques),
        "changes": list(candidate.changes),
        "alters_training": list(candidate.alters_training),
        "peak_reserved_bytes": found.peak_reserved_bytes,
        "peak_allocated_bytes": found.peak_allocated_bytes,
        "context_bytes": found.context_bytes,
        "fits": found.fits,
        "step_seconds": found.step_seconds,
        "interval_seconds": list(found.interval_seconds),
        "samples": found.samples,
        "samples_per_second": found.per_second(found.samples),
        "tokens_per_second": found.per_second(found.tokens),
        "mfu": found.mfu,
        "usd_per_step": found.usd_per_step and list(found.usd_per_step),
        "usd_per_billion_tokens": found.usd_per_billion_tokens and list(found.usd_per_billion_tokens),
        "bound": found.bound,
        "breakdown": dict(found.breakdown),
        "tied_with": list(candidate.tied_with),
        "pareto": candidate.pareto,
        "why": candidate.why,
        "verified": candidate.verified and asdict(candidate.verified),
    }
