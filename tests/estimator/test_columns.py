from __future__ import annotations

import pytest

from dnnmem.estimator.columns import Reader, Table, describe, nested, split
from dnnmem.estimator.errors import UsageError


def _reader(**fields):
    return Reader("a.gz", fields)


def test_strings_and_paths_get_numbers_in_order_of_first_use():
    table = Table()
    assert [table.string(text) for text in ("b", "a", "b")] == [0, 1, 0]
    assert [table.path(path) for path in ((), ("a", "c"), ())] == [0, 1, 0]
    assert (list(table.strings), list(table.paths)) == (["b", "a", "c"], [(), ("a", "c")])


def test_columns_are_read_as_they_were_written():
    reader = _reader(n=[1, 2], t=[None, 0, 0.5], o=None, s="x", m={"a": 1, "b": "c"}, r=[1, 0])
    assert reader.ints("n", 2) == [1, 2]
    assert reader.seconds("t") == [None, 0.0, 0.5]
    assert reader.optional("o") is None
    assert (reader.text("s"), reader.mapping("m", int, str)) == ("x", {"a": 1, "b": "c"})
    assert reader.refs("r", ["zero", "one"]) == ["one", "zero"]


def test_lists_of_lists_are_cut_by_their_counts():
    reader = _reader(reads={"count": [2, 0, 1], "item": [7, 8, 9]})
    assert nested(reader, "reads", 3, lambda inner, n: inner.ints("item", n)) == [(7, 8), (), (9,)]
    assert split("abc", [1, 2]) == [("a",), ("b", "c")]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda r: r.ints("gone"), "field gone is missing"),
        (lambda r: r.ints("text"), "field text is 'x'; it must be a list"),
        (lambda r: r.ints("mixed"), "field mixed has True at 1; it must be int"),
        (lambda r: r.ints("ints", 3), "field ints has 2 entries; it must have 3"),
        (lambda r: r.ints("ints", high=3), "field ints has 4 at 1; it must lie between 0 and 3"),
        (lambda r: r.ints("ints", low=2), "field ints has 1 at 0; it must lie between 2 and"),
        (lambda r: r.refs("ref", "abcd"), "field ref has 9 at 0; it must lie between 0 and 3"),
        (lambda r: r.refs("ints", ""), "field ints has 1 at 0, but what it counts is empty"),
        (lambda r: r.seconds("bad"), "field bad has nan at 0; seconds are finite"),
        (lambda r: r.seconds("negative"), "field negative has -1 at 0; seconds are finite"),
        (lambda r: r.text("ints"), "field ints is a list; it must be a string"),
        (lambda r: r.child("ints"), "field ints is a list; it must be an object"),
        (lambda r: r.child("inner").text("gone"), "field inner.gone is missing"),
        (lambda r: r.mapping("inner", int), "field inner.x is 'y'; it must be int"),
        (lambda r: r.mapping("floats", float), "field floats.x is inf; it must be float"),
        (lambda r: r.optional("text"), "field text has 'x' at 0; it must be int"),
        (lambda _: Reader("a.gz", [1]).get("x"), "field (all) is a list; it must be an object"),
    ],
)
def test_what_is_wrong_is_told_with_file_field_and_value(read, message):
    reader = _reader(
        text="x",
        mixed=[1, True],
        ints=[1, 4],
        ref=[9],
        bad=[float("nan")],
        negative=[-1],
        inner={"x": "y"},
        floats={"x": float("inf")},
    )
    with pytest.raises(UsageError) as caught:
        read(reader)
    assert caught.value.message.startswith(f"a.gz: {message}")


def test_values_in_messages_are_short():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    assert describe(deep) == "a list"
    assert len(describe("x" * 1000)) == 60
