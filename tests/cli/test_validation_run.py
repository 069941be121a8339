"""Steps of published rows are recorded once and kept; what fails to record or to be estimated is one row's reason."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dnnmem.cli import validation_run
from dnnmem.cli.validation_run import predict, record, traces
from dnnmem.estimator.errors import ModelError, UnsupportedError
from dnnmem.estimator.plan import Mesh, Plan, Sharding
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Event, Kind, Storage, Trace
from dnnmem.estimator.trace_file import save_trace
from dnnmem.estimator.validation.case import Case

PLAN = Plan(mesh=Mesh(dp_shard=2), sharding=Sharding(strategy="zero3"))


@dataclass
class Estimate:
    step_seconds: float = 2.0
    interval_seconds: tuple[float, float] = (1.5, 2.5)
    peak_reserved_bytes: int | None = 600
    peak_allocated_bytes: int | None = 500


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Requests that were run: a target called `bad` fails, the others hold a segment of 2 MiB."""
    seen = []

    def run_many(requests, folder, **_):
        for i, request in enumerate(requests):
            seen.append(request)
            path = folder / f"{i}.trace.json.gz"
            small = Storage(id=0, nbytes=request.batch_size, kind=Kind.PARAM)
            trace = Trace(ops=(), storages={0: small}, setup=(Event(small.nbytes, 0, 0),), pinned=frozenset({0}))
            save_trace(trace, Measurement(), path)
            yield i, ModelError("it broke") if request.target == "timm:bad" else path

    monkeypatch.setenv("DNNMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(validation_run, "run_many", run_many)
    monkeypatch.setattr(validation_run, "estimated", lambda *_, **__: Estimate())
    return seen


def case(**fields):
    return Case(
        **{"target": "timm:resnet50", "batch": 400, "gpu": "a100-sxm-80gb", "cluster": "a100-sxm-80gb:1", **fields}
    )


def test_cases_that_share_a_step_record_it_once_and_keep_it(asked):
    # GIVEN three cases of which two differ in their plan only, and one that cannot be predicted
    found = [case(), case(plan=PLAN), case(batch=8), case(reason="no", batch=9)]
    # WHEN they are recorded twice, then afresh
    heard = []
    record(found, lambda *words: heard.append(words))
    assert len(asked) == 2
    assert heard == [("recording", 0, 2), ("recording", 1, 2), ("recording", 2, 2)]
    assert set(traces(found)) == {found[0].key, found[2].key}
    assert len(asked) == 2
    record(found, fresh=True)
    assert len(asked) == 4


def test_what_is_asked_for_is_the_case(asked):
    record([case(target_args=("pretrained=false",), optimizer="sgd", seq=None)])
    request = asked[0]
    assert (request.target, request.args, request.optimizer) == ("timm:resnet50", {"pretrained": "false"}, "sgd")
    assert (request.device, request.gpu, request.batch_size) == ("fake", "a100-sxm-80gb", 400)


@pytest.mark.usefixtures("asked")
def test_what_was_measured_is_compared_with_the_estimate():
    plain, planned = (
        case(measured_reserved_bytes=1200),
        case(measured_reserved_bytes=500, measured_seconds=4.0, plan=PLAN),
    )
    held, seconds, reserved = predict([plain, planned], record([plain, planned]))
    assert (held.predicted, held.error, held.interval) == (600, -0.5, None)
    assert (seconds.predicted, seconds.error, seconds.interval) == (2.0, -0.5, (1.5, 2.5))
    assert (reserved.predicted, reserved.error) == (600, pytest.approx(0.2))


@pytest.mark.usefixtures("asked")
def test_failures_are_reasons_of_their_own_rows_and_keep_the_order(monkeypatch):
    # GIVEN a step that fails to record, one that cannot be estimated, and a row that its reader gave up
    found = [
        case(target="timm:bad", measured_seconds=1.0, line=2),
        case(plan=PLAN, measured_seconds=1.0, line=3),
        case(reason="float8", line=4),
        case(measured_reserved_bytes=400, line=5),
    ]

    def refuse(case, *_, **__):
        if case.plan == PLAN:
            raise UnsupportedError("cp is not predicted yet")
        return Estimate()

    monkeypatch.setattr(validation_run, "estimated", refuse)
    results = predict(found, record(found))
    assert [(p.case.line, p.reason, p.metric) for p in results] == [
        (2, "it broke", "step_seconds"),
        (3, "cp is not predicted yet", "step_seconds"),
        (4, "float8", ""),
        (5, "", "peak_reserved_bytes"),
    ]


@pytest.mark.usefixtures("asked")
def test_a_sample_model_that_is_nowhere_is_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = [case(target="sample_models/none.py", measured_seconds=1.0)]
    assert "neither here nor beside" in predict(found, record(found))[0].reason
