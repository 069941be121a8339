"""Traces for Perfetto, held to the rules of Chrome's trace format."""

from __future__ import annotations

import json

from dnnmem.cli.export.perfetto_json import to_perfetto
from dnnmem.estimator.timeline import timeline
from tests.cli.commands.test_profile import small_step


def test_slices_nest_and_every_event_has_what_the_format_wants():
    # WHEN
    data = json.loads(to_perfetto(small_step("l4-24gb")))
    # THEN
    open_, last = [], 0.0
    for event in data["traceEvents"]:
        assert {"ph", "pid", "tid", "name"} <= event.keys()
        if event["ph"] == "M":
            continue
        assert event["ts"] >= last
        last = event["ts"]
        if event["ph"] == "B":
            open_.append(event["name"])
        elif event["ph"] == "E":
            assert open_.pop() == event["name"]
        else:
            assert event["ph"] == "C"
            assert all(value >= 0 for value in event["args"].values())
    assert open_ == []


def test_counters_reach_the_peak_of_the_step():
    trace = small_step("l4-24gb")
    events = json.loads(to_perfetto(trace))["traceEvents"]
    counted = [sum(event["args"].values()) for event in events if event["name"] == "bytes by kind"]
    assert max(counted) == timeline(trace).allocated.max()
