"""What planners answered for a step and a budget as JSON, `dnnmem.planners/1`.

Bytes are integers, seconds are numbers, what is not known is null.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dnnmem.estimator.plan_text import to_json as plan_to_json

if TYPE_CHECKING:
    from dnnmem.cli.plan_run import Answer, Planned
    from dnnmem.cli.render.schedule_grid import Step
    from dnnmem.estimator.plan import Plan
    from dnnmem.estimator.planners.solve import Solution

SCHEMA = "dnnmem.planners/1"


def to_json(found: Planned) -> str:
    """The answers as indented JSON, a newline at its end."""
    data = {
        "schema": SCHEMA,
        "target": found.target,
        "batch": dict(found.batch),
        "gpu": found.gpu,
        "budget_bytes": found.budget_bytes,
        "plain": {"peak_reserved_bytes": found.plain.peak_bytes, "step_seconds": found.plain.seconds},
        "fits": found.chosen is not None,
        "least_bytes": found.least_bytes if found.chosen is None else None,
        "chosen": found.chosen
        and {"planner": found.chosen.planner, "why": found.chosen.why, **_solution(found.chosen)},
        "schedule": _schedule(found.step),
        "answers": [_answer(answer) for answer in found.answers],
        "verified": found.verified and asdict(found.verified),
        "notes": list(found.notes),
    }
    return json.dumps(data, indent=2) + "\n"


def _answer(answer: Answer) -> dict[str, Any]:
    return {
        "planner": answer.planner.name,
        "words": answer.planner.words,
        "needs": answer.planner.needs,
        "outcome": answer.outcome,
        "message": answer.error.message if answer.error else "",
        "needed_bytes": answer.needed_bytes,
        "found": answer.solution and _solution(answer.solution),
    }


def _solution(solution: Solution) -> dict[str, Any]:
    return {
        "peak_reserved_bytes": solution.cost.peak_bytes,
        "step_seconds": solution.cost.seconds,
        "extra_seconds": solution.extra_seconds,
        "optimal": solution.found.optimal,
        "gap": solution.found.gap,
        "gradient_error": solution.gradient_error,
        "solve_seconds": solution.solve_seconds,
        "plan": _plan(solution.plan),
        "schedule": solution.found.schedule or None,
        "notes": list(solution.found.notes),
    }


def _plan(plan: Plan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    data = plan_to_json(plan)
    del data["schema"]
    return data


def _schedule(step: Step | None) -> list[dict[str, Any]]:
    """What becomes of each group of blocks."""
    return [
        {
            "blocks": group.path,
            "count": len(group.fates),
            "computed_as_one": group.run,
            **{
                name: sum(getattr(fate, name) for fate in group.fates)
                for name in ("saved_bytes", "kept_bytes", "host_bytes", "forward_seconds", "again_seconds")
            },
        }
        for group in (step.groups if step else ())
    ]
