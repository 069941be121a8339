"""A plan as a small Python file that applies it: the plan as data, one function, and where it comes from.

from out import apply_plan
model, optimizer = apply_plan(model, optimizer)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from dnnmem import __version__
from dnnmem.cli.render.schedule import fate_words
from dnnmem.cli.render.text import printable
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import SCHEMA
from dnnmem.estimator.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from dnnmem.cli.plan_run import Planned
    from dnnmem.estimator.planners.problem import Cost
    from dnnmem.estimator.planners.solve import Solution


def script(found: Planned, chosen: Solution, plan: Plan, *, module: str, command: Sequence[str]) -> str:
    """The file's text.

    Args: `module` is the name that it is imported by; `command` is what wrote it.
    """
    lines = [
        '"""Apply a plan of dnnmem to a model and its optimizer, before their first step.',
        "",
        f"    from {module} import apply_plan",
        "    model, optimizer = apply_plan(model, optimizer)",
        "",
        f"Written by dnnmem {__version__}; planner: {chosen.planner}; made by",
        "",
        f"    {_safe(' '.join(command))}",
        "",
        f"Predicted on {found.gpu} for a budget of {format_bytes(found.budget_bytes)}:",
        f"{_cost(chosen.cost)}; without the plan {_cost(found.plain)}.",
        *_blocks(found),
        '"""',
        "",
        "import dnnmem",
        "",
        *_literal(data(plan)),
        "",
        "",
        "def apply_plan(model, optimizer):",
        '    """The model and the optimizer as the plan has them: use what is returned."""',
        "    return dnnmem.apply(model, optimizer, PLAN)",
    ]
    return "\n".join(lines) + "\n"


def data(plan: Plan) -> dict[str, object]:
    """The plan as `dnnmem.apply` reads it, without what is at its default.

    >>> from dnnmem.estimator.plan import Remat
    >>> data(Plan(remat=Remat(policy="full")))
    {'schema': 'dnnmem.plan/1', 'remat': {'policy': 'full'}}
    """
    now, default = asdict(plan), asdict(Plan())
    parts = {
        part: {name: value for name, value in table.items() if value != default[part][name]}
        for part, table in now.items()
    }
    return {"schema": SCHEMA, **{part: table for part, table in parts.items() if table}}


def _cost(cost: Cost) -> str:
    return f"{format_bytes(cost.peak_bytes)} reserved, {format_seconds(cost.seconds)} a step"


def _literal(plan: Mapping[str, object]) -> list[str]:
    """The assignment, a line a field."""
    lines = ["PLAN = {"]
    for part, value in plan.items():
        table = isinstance(value, Mapping) and ", ".join(f'"{name}": {_value(v)}' for name, v in value.items())
        lines.append(f'    "{part}": {{{table}}},' if table else f'    "{part}": {_value(value)},')
    return [*lines, "}"]


def _value(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _blocks(found: Planned) -> list[str]:
    if found.step is None or not found.step.groups:
        return []
    width = max(len(group.path) for group in found.step.groups)
    return ["", *(f"    {_safe(group.path):<{width}}  {fate_words(group)}" for group in found.step.groups)]


def _safe(text: str) -> str:
    """Fit for a docstring."""
    return printable(text).replace("\\", "/").replace('"""', "'''")
