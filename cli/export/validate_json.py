"""Predictions of published rows as JSON, `dnnmem.validate/1`: a result a source and metric, and every row.

Errors are relative, in results without sign; what is not known is null. The models below are the format; the published
JSON Schema (`dnnmem/schemas/validate-1.schema.json`) is generated from them. Keys may be added within version 1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dnnmem.estimator.plan_text import to_json as plan_json
from dnnmem.estimator.validation.score import Prediction, scores

SCHEMA: Literal["dnnmem.validate/1"] = "dnnmem.validate/1"
"""Name and version of the format."""

Metric = Literal["step_seconds", "peak_reserved_bytes", "peak_allocated_bytes"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ResultJson(_Model):
    """How near the predictions of one source and metric are."""

    source: str
    metric: Metric
    rows: int = Field(ge=0, description="rows that hold the measurement or cannot be predicted at all")
    predicted: int = Field(ge=0, description="of them, those that are predicted")
    median_abs_error: float | None = Field(description="relative")
    mean_abs_error: float | None = Field(description="relative")
    worst_abs_error: float | None = Field(description="relative")
    spearman: float | None = Field(description="rank correlation; null for fewer than three predicted rows")


class RowJson(_Model):
    """One row of a table and one of its measurements."""

    source: str
    line: int = Field(ge=1, description="of its file, the header being 1")
    metric: Metric | None = Field(description="null for a row that holds none")
    measured: float | None = Field(description="seconds or bytes")
    predicted: float | None = Field(description="seconds or bytes")
    error: float | None = Field(description="predicted / measured - 1")
    interval: tuple[float, float] | None = Field(description="where nine of ten such values lie")
    reason: str | None = Field(description="why there is no prediction")
    gpu: str
    strategy: str
    target: str | None = Field(description="what is recorded")
    args: list[str] = Field(description="its --arg NAME=VALUE")
    batch_size: int | None = Field(description="samples of a micro-batch on one rank")
    seq_len: int | None
    layers: int | None = Field(description="blocks, if more than are recorded")
    cluster: str | None
    plan: dict[str, Any] | None = Field(description="as `dnnmem estimate --plan` takes it")


class ValidateJson(_Model):
    """All of it."""

    schema_: Literal["dnnmem.validate/1"] = Field(default=SCHEMA, alias="schema")
    results: list[ResultJson]
    rows: list[RowJson]


def to_json(found: Sequence[Prediction]) -> str:
    """The predictions as indented JSON, a newline at its end."""
    results = [
        ResultJson(
            source=score.group,
            metric=score.metric,  # type: ignore[arg-type]  # one of METRICS
            rows=score.rows,
            predicted=score.predicted,
            median_abs_error=score.median_abs_error,
            mean_abs_error=score.mean_abs_error,
            worst_abs_error=score.worst_abs_error,
            spearman=score.spearman,
        )
        for score in scores(found, lambda case: case.source)
    ]
    data = ValidateJson(schema=SCHEMA, results=results, rows=[_row(prediction) for prediction in found])
    return data.model_dump_json(indent=2, by_alias=True) + "\n"


def json_schema() -> str:
    """The JSON Schema of the format, as published."""
    schema: dict[str, Any] = ValidateJson.model_json_schema(by_alias=True)
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": SCHEMA}
    return json.dumps(dialect, indent=2) + "\n"


def _row(prediction: Prediction) -> RowJson:
    case = prediction.case
    known = bool(case.target)
    return RowJson(
        source=case.source,
        line=case.line,
        metric=prediction.metric or None,  # type: ignore[arg-type]  # one of METRICS
        measured=prediction.measured,
        predicted=prediction.predicted,
        error=prediction.error,
        interval=prediction.interval,
        reason=prediction.reason or None,
        gpu=case.gpu,
        strategy=case.strategy if known else "",
        target=case.target or None,
        args=list(case.target_args),
        batch_size=case.batch if known else None,
        seq_len=case.seq,
        layers=case.layers,
        cluster=case.cluster or None,
        plan=plan_json(case.plan) if known else None,
    )
