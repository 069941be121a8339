"""Baselines as text: what is written is read, what is no baseline is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.baseline import Entry, Key
from dnnmem.estimator.baseline_file import from_text, to_text
from dnnmem.estimator.errors import UsageError

NAMES = st.one_of(
    st.integers(0, 12).map(str),
    st.sampled_from(["fc", "0-3", "h", "01", "<script>", "a b", "\n", "é", "\\", '"']),
)
PATHS = st.lists(NAMES, max_size=4).map(".".join)
SIZES = st.integers(0, 2**50)


@st.composite
def entries(draw):
    key = Key(
        target=draw(st.text(max_size=8)),
        batch=draw(st.dictionaries(st.text(max_size=4), st.one_of(st.integers(), st.text(max_size=4)), max_size=3)),
        device="fake",
        gpu=draw(st.none() | st.just("a10g-24gb")),
        torch="2.14",
    )
    modules = draw(st.dictionaries(st.tuples(PATHS, st.sampled_from(["param", "temp"])), SIZES, max_size=12))
    return Entry(
        key=key, allocated_bytes=draw(SIZES), reserved_bytes=draw(st.none() | SIZES), modules=modules,
        parts=draw(st.dictionaries(st.sampled_from(["activations", "context"]), SIZES)),
    )  # fmt: skip


@given(st.lists(entries(), max_size=3, unique_by=lambda entry: entry.key.text))
def test_what_is_written_is_read(steps):
    # WHEN any steps are written and read  THEN they are the same, and written again they give the same bytes
    text = to_text(steps)
    found = from_text(text, "file")
    assert found == {step.key.text: step for step in steps}
    assert to_text(reversed(list(found.values()))) == text


def test_equal_blocks_are_one_line():
    # GIVEN 96 equal blocks but for one
    modules = {(f"layers.{i}.mlp", "activation"): 7 if i != 40 else 8 for i in range(96)}
    # THEN three lines hold them
    text = to_text(
        [Entry(key=Key(target="m", device="fake", gpu=None, torch="2.14"), allocated_bytes=1, modules=modules)]
    )
    assert [line.strip(" ,") for line in text.splitlines() if "layers" in line] == [
        '"layers.0-39.mlp activation": 7', '"layers.40.mlp activation": 8', '"layers.41-95.mlp activation": 7',
    ]  # fmt: skip


STEP = {"target": "m", "device": "fake", "gpu": None, "torch": "2.14", "allocated_bytes": 1}
BAD = {
    "empty": "",
    "not JSON": "{",
    "markers": '{\n<<<<<<< HEAD\n"schema": 1\n=======\n>>>>>>> other\n}',
    "deep": "[" * 100_000,
    "a list": "[]",
    "another schema": '{"schema": "dnnmem.profile/1", "steps": {}}',
    "no steps": '{"schema": "dnnmem.baseline/1"}',
    "a step of another key": json.dumps({"schema": "dnnmem.baseline/1", "steps": {"x": STEP}}),
    **{
        f"{name}={value!r}": json.dumps(
            {"schema": "dnnmem.baseline/1", "steps": {"m | fake | no gpu | torch 2.14": {**STEP, name: value}}}
        )
        for name, value in [
            ("allocated_bytes", -1), ("allocated_bytes", 1.5), ("allocated_bytes", True), ("allocated_bytes", None),
            ("reserved_bytes", "1"), ("parts", []), ("parts", {"a": -1}), ("modules", {"fc": 1}),
            ("modules", {"h.5-2 param": 1}), ("modules", {"h.0-99999999999 param": 1}), ("modules", {"fc param": "1"}),
            ("gpu", 3), ("target", None), ("batch", {"a": 1.5}), ("batch", 3), ("step_seconds", -1),
            ("allocator", 1),
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_baseline_is_refused(name):
    with pytest.raises(UsageError) as raised:
        from_text(BAD[name], "baseline.json")
    assert raised.value.message.startswith("baseline.json")
    assert raised.value.hint
