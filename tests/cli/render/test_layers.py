import pytest

from dnnmem.cli.render.layers import layer_table
from dnnmem.cli.render.rich_text import plain
from dnnmem.cli.render.rows import fold_rows
from dnnmem.estimator.profile import Layer


def table(layers, width):
    rows = fold_rows(layers)
    total = sum(row.peak_bytes for row in rows)
    return plain(layer_table(rows, peak_bytes=total, width=width), width=width).splitlines()


def heads(layers, width):
    return table(layers, width)[0].split()


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (60, ["layer", "params", "activations", "share"]),
        (80, ["layer", "params", "activations", "temp", "at", "peak", "share"]),
        (100, ["layer", "type", "params", "grads", "activations", "temp", "at", "peak", "share"]),
        (160, ["layer", "type", "params", "grads", "optimizer", "activations", "temp", "fwd", "FLOPs", "bwd", "FLOPs",
               "at", "peak", "share"]),
    ],
)  # fmt: skip
def test_a_narrow_terminal_drops_what_tells_least(gpt, width, shown):
    assert heads(gpt.layers, width) == shown


def test_seconds_have_columns_where_they_were_measured():
    layers = [Layer(module="fc", type="Linear", peak_bytes=1, forward_seconds=0.001, backward_seconds=0.0025)]

    assert heads(layers, 100) == ["layer", "type", "fwd", "bwd", "at", "peak", "share"]
    assert table(layers, 100)[1].split() == ["fc", "Linear", "1", "ms", "2.5", "ms", "1", "B", "100.0", "%"]


def test_a_long_path_loses_its_beginning():
    layers = [Layer(module=".".join(["encoder"] * 12 + ["query"]), type="Linear", param_bytes=1, peak_bytes=1)]

    line = table(layers, 60)[1]
    assert line.startswith("…")
    assert ".encoder.query " in line


def test_what_a_table_cannot_know_is_empty_and_not_0():
    layers = [Layer(module="a", type="A", peak_bytes=4, forward_seconds=0.5), Layer(module="b", type="B", peak_bytes=4)]

    assert table(layers, 80)[2].split() == ["b", "B", "4", "B", "50.0", "%"]
