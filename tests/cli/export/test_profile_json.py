import json
import os

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.cli.export.profile_json import POINTS, SCHEMA, json_schema, to_json
from dnnmem.estimator.profile import PARTS

THE_ISSUES_KEYS = {
    "schema", "target", "device", "gpu", "versions", "batch", "peak", "parts", "total_bytes", "usable_bytes", "fits",
    "step_seconds", "layers",
}  # fmt: skip


def test_the_published_schema_is_the_one_of_the_models(root):
    # GIVEN the file in the package, which DNNMEM_REWRITE_GOLDEN=1 writes anew  THEN it says what the models say
    path = root / "src/dnnmem/schemas/profile-1.schema.json"
    if os.environ.get("DNNMEM_REWRITE_GOLDEN") == "1":
        path.write_text(json_schema(), encoding="utf-8")

    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json_schema())


def test_a_profile_validates_against_the_schema(gpt):
    value = json.loads(to_json(gpt))

    jsonschema.validate(value, json.loads(json_schema()))
    assert value["schema"] == SCHEMA == "dnnmem.profile/1"
    assert value.keys() >= THE_ISSUES_KEYS
    assert list(value["parts"]) == list(PARTS)
    assert value["layers"][1]["module"] == "wte"
    assert all(isinstance(value["layers"][1][name], int) for name in ("param_bytes", "temp_bytes", "forward_flops"))


def test_what_is_not_known_is_null(make_gpt):
    value = json.loads(to_json(make_gpt(gpu=None, usable_bytes=None, fits=None, parts={"context": None})))

    assert [value[key] for key in ("gpu", "usable_bytes", "fits", "step_seconds")] == [None] * 4
    assert value["parts"]["context"] is None
    assert value["layers"][0]["forward_seconds"] is None


@given(st.data())
def test_the_known_parts_sum_to_the_total(make_gpt, data):
    sizes = st.one_of(st.none(), st.integers(0, 10**12))
    parts = {name: data.draw(sizes) for name in PARTS}

    value = json.loads(to_json(make_gpt(parts=parts)))

    assert sum(nbytes for nbytes in value["parts"].values() if nbytes is not None) == value["total_bytes"]
    assert value["parts"] == parts


def test_a_stack_that_does_not_add_up_is_never_written(make_gpt):
    with pytest.raises(ValueError, match="the known parts sum to"):
        to_json(make_gpt(total_bytes=1))


def test_the_timeline_is_thinned_out_and_keeps_its_peak(gpt):
    timeline = json.loads(to_json(gpt))["timeline"]

    assert timeline["events"] == len(gpt.timeline.allocated)
    assert len(timeline["index"]) <= POINTS
    assert max(timeline["allocated_bytes"]) == int(gpt.timeline.allocated.max())
    assert [sum(column) for column in zip(*timeline["kinds"].values(), strict=True)] == timeline["allocated_bytes"]
    assert timeline["phases"] == [["forward", 0], ["backward", 30], ["step", 50]]
