"""A check as SARIF 2.1.0, for code scanning: a finding at the line of each layer that grew most.

Only findings with a place in the code are of use there; a step whose layers have none points at its target's file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dnnmem import __version__
from dnnmem.cli.check_run import Checked
from dnnmem.cli.export.check.places import file_line, in_repository
from dnnmem.cli.render.check import label_of, signed, why_of
from dnnmem.estimator.baseline import Verdict, blame

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RULES = {
    "memory-regression": "A training step needs more memory than was accepted.",
    "over-budget": "A training step needs more memory than its budget.",
    "step-failed": "A training step could not be measured.",
}
_MOST = 10


def render(found: Sequence[Checked]) -> str:
    """The log, a newline at its end."""
    driver = {
        "name": "dnnmem",
        "version": __version__,
        "rules": [{"id": rule, "shortDescription": {"text": text}} for rule, text in _RULES.items()],
    }
    run = {"tool": {"driver": driver}, "results": [result for step in found for result in _results(step)]}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _results(step: Checked) -> Iterator[dict[str, Any]]:
    if step.verdict is None:
        yield _result("step-failed", step.error.message if step.error else step.name, _file(step.name))
        return
    if not step.fails:
        return
    rule = "memory-regression" if step.verdict.outcome == "regressed" else "over-budget"
    grown = [line for line in blame(step.verdict) if line.grown_bytes > 0][:_MOST]
    reason = f"{step.name}: {'; '.join(step.verdict.reasons)}"
    if not grown:
        yield _result(rule, reason, _file(step.name), key=_key(step.verdict))
    for line in grown:
        text = f"{label_of(line)} {signed(line.grown_bytes)}: {why_of(line)}. {reason}"
        yield _result(rule, text, file_line(line.since) or _file(step.name), key=_key(step.verdict) + line.label)


def _file(name: str) -> tuple[str, int] | None:
    path = name.partition(":")[0]
    return (path, 1) if path.endswith(".py") else None


def _key(verdict: Verdict) -> str:
    return verdict.entry.key.text


def _result(rule: str, text: str, place: tuple[str, int] | None, *, key: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": rule,
        "level": "error",
        "message": {"text": re.sub(r"([\\\[\]])", r"\\\1", text)},
    }  # else a link
    if place is not None:
        where = {"artifactLocation": {"uri": _uri(place[0])}, "region": {"startLine": place[1]}}
        result["locations"] = [{"physicalLocation": where}]
    if key:
        result["partialFingerprints"] = {"dnnmemStep/v1": key}
    return result


def _uri(path: str) -> str:
    path = in_repository(path)
    return Path(path).as_uri() if Path(path).is_absolute() else quote(path.replace("\\", "/"))
