from __future__ import annotations

import copy
import gzip
import json
import math
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.trace import Event, Kind, Module, Op, Part, Storage, Trace
from dnnmem.estimator.trace_file import load_trace, save_trace
from tests.strategies import step_trace

MEASUREMENT = Measurement(allocated_bytes=500, step_seconds=0.25, facts={"repeats": 5, "loss": 0.5, "gpu": "x"})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of the step made by hand, and what is in it."""
    path = tmp_path_factory.mktemp("file") / "step.trace.json.gz"
    save_trace(step_trace(8), MEASUREMENT, path)
    return path, json.loads(gzip.decompress(path.read_bytes()))


def _write(path, document):
    path.write_bytes(gzip.compress(json.dumps(document).encode(), compresslevel=1))
    return path


def test_a_step_comes_back_as_it_was(written):
    assert load_trace(written[0]) == (step_trace(8), MEASUREMENT)


def test_the_file_says_what_it_is(written):
    assert written[1]["schema"] == "dnnmem.trace/1"
    assert written[1]["origin"]["versions"] == {"torch": "2.9.0"}


def test_the_same_trace_gives_the_same_bytes(written, tmp_path):
    again = tmp_path / "another name.gz"
    save_trace(step_trace(8), MEASUREMENT, again)
    assert again.read_bytes() == written[0].read_bytes()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    # GIVEN a saved file  WHEN saving over it fails before it is written
    path = tmp_path / "step.trace.json.gz"
    save_trace(step_trace(1), MEASUREMENT, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_trace(replace(step_trace(8), batch={"x": object()}), MEASUREMENT, path)
    # THEN the old one is still there, and nothing beside it
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_loss_that_is_no_number_is_kept_as_text(tmp_path):
    path = tmp_path / "nan.gz"
    save_trace(step_trace(1), Measurement(facts={"loss": math.nan, "norm": math.inf}), path)
    assert load_trace(path)[1].facts == {"loss": "nan", "norm": "inf"}


def test_text_that_no_terminal_can_show_is_replaced_and_refused(written, tmp_path):
    # GIVEN a target with half a surrogate pair, as a path in another encoding gives
    trace = step_trace(1)
    path = tmp_path / "step.gz"
    save_trace(replace(trace, origin=replace(trace.origin, target="m\udcff.py")), MEASUREMENT, path)
    # WHEN it comes back  THEN a question mark stands there; a file that holds one is refused
    assert load_trace(path)[0].origin.target == "m?.py"
    document = copy.deepcopy(written[1])
    document["strings"][0] = "\ud800"
    with pytest.raises(UsageError, match="field strings has text that is not Unicode"):
        load_trace(_write(path, document))


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot write the trace: No such file or directory"):
        save_trace(step_trace(1), MEASUREMENT, tmp_path / "gone" / "step.gz")


def test_fields_of_a_later_writer_are_ignored(written, tmp_path):
    document = copy.deepcopy(written[1])
    document["later"] = document["ops"]["later"] = [1, 2, 3]
    assert load_trace(_write(tmp_path / "more.gz", document)) == (step_trace(8), MEASUREMENT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not hold JSON"),
        (b"{}", "not a whole gzip file"),
        (gzip.compress(b"{}")[:-4], "not a whole gzip file"),
        (gzip.compress(b"{}")[:12] + b"\xff\xff\xff", "not a whole gzip file"),
        (gzip.compress(b"{"), "does not hold JSON"),
        (gzip.compress(b"\xff"), "does not hold JSON"),
        (gzip.compress(b"[" * 1_000_000), "does not hold JSON"),
        (gzip.compress(b"1" * 5000), "does not hold JSON"),
        (gzip.compress(b"[]"), "field (all) is a list"),
        (gzip.compress(b"{}"), "field schema is missing"),
    ],
    ids=["empty", "plain", "cut", "garbled", "json", "utf8", "deep", "number", "list", "nothing"],
)
def test_what_is_no_trace_is_refused(tmp_path, content, message):
    path = tmp_path / "step.gz"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_trace(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["gone.gz", ".", "null\0.gz"])
def test_a_path_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="cannot read the trace"):
        load_trace(f"{tmp_path}/{name}")


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dnnmem.estimator.trace_file.MAX_TEXT_BYTES", 100)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b" " * 101))
    with pytest.raises(UsageError, match="unpacks to more than 100 B"):
        load_trace(path)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("dnnmem.trace/2", "is 'dnnmem.trace/2', and this dnnmem reads 'dnnmem.trace/1'"),
        ("dnnmem.profile/1", "field schema is 'dnnmem.profile/1'; a trace has 'dnnmem.trace/1'"),
        (1, "field schema is 1; it must be a string"),
    ],
)
def test_other_schemas_are_refused(tmp_path, schema, message):
    with pytest.raises(UsageError) as caught:
        load_trace(_write(tmp_path / "step.gz", {"schema": schema}))
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("ops.name", [0], "field ops.module has 6 entries; it must have 1"),
        ("ops.name.0", 99, "field ops.name has 99 at 0; it must lie between 0 and"),
        ("ops.name.0", -1, "field ops.name has -1 at 0"),
        ("ops.phase.1", 0, "field ops.phase has 'mm' at 1; it must be one of forward, backward, step"),
        ("ops.flops.0", 10**400, "field ops.flops has 1000"),
        ("ops.flops.0", -5, "field ops.flops has -5 at 0"),
        ("ops.flops.0", 1.5, "field ops.flops has 1.5 at 0; it must be int"),
        ("ops.seconds.0", -1.0, "field ops.seconds has -1.0 at 0"),
        ("ops.reads.item.0", 77, "field ops.reads.item has 77, which is no storage's id"),
        ("ops.reads.count.0", 1, "field ops.reads.item has 10 entries; it must have 9"),
        ("ops.events.nbytes.0", 2**60, "field ops.events.nbytes has 1152921504606846976 at 0"),
        ("ops.events.nbytes.0", 65, "field ops breaks the rules of a trace: op 0 (mm) allocates 65 bytes"),
        ("ops.events.storage.0", 77, "field ops breaks the rules of a trace: op 0 (mm) allocates"),
        ("storages.id.1", 0, "field storages.id has 7 different ids for 8 storages"),
        ("storages.kind.0", 0, "field storages.kind has 'mm' at 0; it must be one of param"),
        ("storages.saved.0", 1, "field storages.saved has 1 at 0; it must be bool"),
        ("storages.shape.item.0", -4, "field storages.shape.item has -4 at 0"),
        ("pinned", [0, 77], "field pinned has 77, which is no storage's id"),
        ("paths.0", [0, "x"], "field paths has 'x' at 1; it must be int"),
        ("strings.0", None, "field strings has None at 0; it must be str"),
        ("batch.batch_size", [8], "field batch.batch_size is a list; it must be int or str"),
        ("origin.gpu", 5, "field origin.gpu is 5; it must be a string"),
        ("origin.notes.0", 5, "field origin.notes has 5 at 0; it must be str"),
        ("measurement.allocated_bytes", -1, "field measurement.allocated_bytes has -1 at 0"),
        ("measurement.facts.loss", None, "field measurement.facts.loss is None; it must be int or float or str"),
        ("measurement", None, "field measurement is None; it must be an object"),
        ("setup.stream", [0], "field setup.stream has 1 entries; it must have 3"),
    ],
)
def test_a_wrong_field_is_named(written, tmp_path, place, value, message):
    # GIVEN a good file  WHEN one value in it is replaced
    document = copy.deepcopy(written[1])
    *outer, last = place.split(".")
    inner = document
    for key in outer:
        inner = inner[key]
    inner[int(last) if isinstance(inner, list) else last] = value
    path = _write(tmp_path / "step.gz", document)
    # THEN the error has file and field, and the exit code of a usage error
    with pytest.raises(UsageError) as caught:
        load_trace(path)
    assert caught.value.message.startswith(f"{path}: {message}")
    assert caught.value.exit_code == 2


def test_bytes_that_no_sum_can_hold_are_refused(written, tmp_path):
    # GIVEN blocks that are each in range  WHEN together they overflow 64 bits
    document = copy.deepcopy(written[1])
    count = 2**16
    size = {"nbytes": [2**48] * count, "stream": [0] * count, "storage": [-1] * count}
    document["setup"] = size
    with pytest.raises(UsageError, match=r"field setup.nbytes adds up"):
        load_trace(_write(tmp_path / "step.gz", document))


def _places(value, place=()):
    """Every place in a document, containers too."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*place, key))


_JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 100), st.integers(), st.floats(), st.text(max_size=3),
    st.sampled_from((2**63, -(2**63), 2**64, 10**30, 1e308)), st.lists(st.integers(-3, 9), max_size=3),
    st.builds(dict), st.builds(lambda: {"x": 1}),
)  # fmt: skip


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_document_loads_or_is_a_usage_error(written, tmp_path_factory, data):
    # GIVEN a good file  WHEN one to three values in it are replaced by junk, left out or repeated
    document = copy.deepcopy(written[1])
    for _ in range(data.draw(st.integers(1, 3))):
        *outer, last = data.draw(st.sampled_from([place for place in _places(document) if place]))
        inner = document
        for key in outer:
            inner = inner[key]
        action = data.draw(st.sampled_from(("replace", "replace", "drop", "double")))
        if action == "drop":
            del inner[last]
        elif action == "double" and isinstance(inner, list):
            inner.append(inner[last])
        else:
            inner[last] = data.draw(_JUNK)
    path = _write(tmp_path_factory.getbasetemp() / "mutated.gz", document)
    # THEN it is a good trace still, or one error that names the file
    _loads_or_tells(path)


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 3))
def test_a_mutated_text_or_file_loads_or_is_a_usage_error(written, tmp_path_factory, place, byte, how):
    # GIVEN the bytes of a good file, packed or not  WHEN one is changed or the rest is cut off
    packed = written[0].read_bytes()
    content = bytearray(packed if how % 2 else gzip.decompress(packed))
    at = place % len(content)
    content[at:] = content[at:at] if how >= 2 else bytes((byte,)) + content[at + 1 :]
    path = tmp_path_factory.getbasetemp() / "mutated.gz"
    path.write_bytes(content if how % 2 else gzip.compress(content, compresslevel=1))
    _loads_or_tells(path)


def _loads_or_tells(path):
    try:
        trace, _ = load_trace(path)
    except UsageError as error:
        assert str(path) in error.message  # noqa: PT017  # either outcome is right
    else:
        trace.check()


def test_a_large_step_is_saved_and_loaded_quickly(tmp_path, record_property):
    # GIVEN 20,000 operators  WHEN they are saved and loaded
    storages = {i: Storage(id=i, nbytes=512 * (i % 97 + 1), kind=Kind.ACTIVATION, shape=(i,)) for i in range(20_000)}
    ops = tuple(
        Op(
            name=f"aten.op{i % 40}",
            module=("h", str(i % 80), "mlp"),
            reads=(i,) if i % 2 else (),
            events=(Event(s.nbytes, 0, i),) if i % 2 == 0 else (Event(-storages[i - 1].nbytes, 0, i - 1),),
            flops=i,
        )
        for i, s in storages.items()
    )
    ops = tuple(replace(op, reads=(i - 1,) if i % 2 else ()) for i, op in enumerate(ops))
    trace = Trace(ops=ops, storages=storages)
    path = tmp_path / "large.gz"
    start = time.perf_counter()
    save_trace(trace, MEASUREMENT, path)
    saved = time.perf_counter()
    again, _ = load_trace(path)
    loaded = time.perf_counter()
    # THEN each takes seconds at most on a slow machine, and the file is small
    record_property("seconds", (saved - start, loaded - saved))
    record_property("bytes", path.stat().st_size)
    assert again == trace
    assert max(saved - start, loaded - saved) < 5
    assert path.stat().st_size < 2**20


def test_columns_of_later_writers_may_be_missing(written, tmp_path):
    # GIVEN a file from before masks and layouts were told  WHEN loaded  THEN nothing is masked and no image turned
    document = copy.deepcopy(written[1])
    del document["ops"]["masked_flops"], document["storages"]["channels_last"], document["storages"]["parts"]
    del document["modules"]["uncalled"]
    assert load_trace(_write(tmp_path / "older.gz", document)) == (step_trace(8), MEASUREMENT)


def test_masks_and_layouts_come_back(tmp_path):
    image = Storage(id=0, nbytes=8, kind=Kind.INPUT, shape=(1, 2, 2, 2), dtype="int8", channels_last=True)
    op = Op(name="aten._flash_attention_forward.default", reads=(0,), flops=8, masked_flops=3)
    trace = Trace(ops=(op,), storages={0: image}, pinned=frozenset({0}))
    save_trace(trace, MEASUREMENT, tmp_path / "step.gz")
    assert load_trace(tmp_path / "step.gz")[0] == trace


def test_what_was_not_called_comes_back(tmp_path):
    modules = Module(path=(), type="Net"), Module(path=("blocks",), type="ModuleList", called=False)
    trace = Trace(ops=(), storages={}, modules=modules)
    save_trace(trace, MEASUREMENT, tmp_path / "step.gz")
    assert load_trace(tmp_path / "step.gz")[0].modules == modules


def test_parts_come_back(tmp_path):
    parts = Part(("rnn",), "weight_ih_l0", (2, 1)), Part(("rnn",), "bias_ih_l0", (2,))
    block = Storage(id=0, nbytes=16, kind=Kind.PARAM, shape=(2, 1), dtype="float32", name="weight_ih_l0", parts=parts)
    trace = Trace(ops=(), storages={0: block}, pinned=frozenset({0}))
    save_trace(trace, MEASUREMENT, tmp_path / "step.gz")
    assert load_trace(tmp_path / "step.gz")[0] == trace
