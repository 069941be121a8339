from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dnnmem.cli.render.rows import choose_depth, fold_rows
from dnnmem.estimator.profile import Layer

SUMMED = ("param_bytes", "grad_bytes", "optimizer_bytes", "activation_bytes", "forward_flops", "backward_flops")


def layer(module, **known):
    return Layer(module=module, type=known.pop("type", "Linear"), **{"param_bytes": 4, **known})


def labels(layers, **how):
    return [f"{row.label} x{row.count}" for row in fold_rows(layers, **how)]


@st.composite
def models(draw):
    """Layers of a model: paths of names and indices in the order of a walk, with small numbers that often agree."""
    names = st.sampled_from(["0", "1", "2", "3", "7", "attn", "fc"])
    paths = draw(st.lists(st.lists(names, max_size=3).map(tuple), unique=True, max_size=25))
    numbers = st.integers(0, 1)
    return [
        Layer(
            module=".".join(path),
            type="T",
            peak_bytes=draw(st.integers(0, 9)),
            forward_seconds=draw(st.sampled_from([None, 0.5])),
            **{name: draw(numbers) for name in SUMMED},
        )
        for path in sorted(paths)
    ]


@given(models(), st.sampled_from([None, 1, 2, 3]), st.booleans())
def test_folding_and_summing_lose_nothing(layers, depth, fold):
    rows = fold_rows(layers, depth=depth, fold=fold)

    for name in SUMMED:
        assert sum(row.count * getattr(row.one, name) for row in rows) == sum(getattr(one, name) for one in layers)
    assert sum(row.peak_bytes for row in rows) == sum(one.peak_bytes for one in layers)
    seconds = [row.count * row.one.forward_seconds for row in rows if row.one.forward_seconds is not None]
    assert round(sum(seconds), 6) == sum(one.forward_seconds for one in layers if one.forward_seconds is not None)


@given(models())
def test_without_fold_every_layer_has_its_line(layers):
    assert sorted(row.label for row in fold_rows(layers, fold=False)) == sorted(one.module for one in layers)


@given(models(), st.integers(1, 3))
def test_no_line_is_deeper_than_the_depth(layers, depth):
    assert all(len(row.label.split(".")) <= depth for row in fold_rows(layers, depth=depth))


def test_equal_blocks_fold():
    layers = [layer(f"h.{i}.{name}") for i in range(3) for name in ("ln", "fc")]

    assert labels(layers) == ["h.0-2.ln x3", "h.0-2.fc x3"]


def test_a_block_that_differs_breaks_the_fold():
    layers = [layer(f"h.{i}", param_bytes=8 if i == 2 else 4) for i in range(5)]

    assert labels(layers) == ["h.0-1 x2", "h.2 x1", "h.3-4 x2"]


def test_a_block_of_another_type_breaks_the_fold():
    assert labels([layer("0", type="A"), layer("1", type="B")]) == ["0 x1", "1 x1"]


def test_a_block_with_one_module_more_breaks_the_fold():
    assert labels([layer("0.fc"), layer("1.fc"), layer("1.down")]) == ["0.fc x1", "1.fc x1", "1.down x1"]


def test_indices_with_a_gap_do_not_fold():
    assert labels([layer("h.0"), layer("h.2")]) == ["h.0 x1", "h.2 x1"]


def test_names_do_not_fold():
    assert labels([layer("query"), layer("key")]) == ["query x1", "key x1"]


def test_seconds_and_bytes_at_the_peak_do_not_break_a_fold():
    layers = [layer("h.0", peak_bytes=1, forward_seconds=1.0), layer("h.1", peak_bytes=5, forward_seconds=3.0)]

    [row] = fold_rows(layers)

    assert (row.label, row.peak_bytes, row.one.forward_seconds) == ("h.0-1", 6, 2.0)


def test_folds_nest():
    layers = [layer(f"layers.{i}.experts.{j}") for i in range(2) for j in range(4)]

    assert labels(layers) == ["layers.0-1.experts.0-3 x8"]


def test_depth_sums_into_the_ancestor_and_says_how_many():
    layers = [layer("h", type="List"), layer("h.0.fc", temp_bytes=3), layer("h.0.ln", temp_bytes=5), layer("head")]

    first, second = fold_rows(layers, depth=1)

    assert (first.label, first.one.type, first.one.param_bytes, first.one.temp_bytes, first.inside) == (
        "h",
        "List",
        12,
        5,
        2,
    )
    assert (second.label, second.inside) == ("head", 0)


def test_a_parent_with_something_of_its_own_is_marked():
    rows = fold_rows([layer("attn"), layer("attn.q")])

    assert [(row.label, row.own) for row in rows] == [("attn", True), ("attn.q", False)]


def test_modules_that_hold_and_do_nothing_are_left_out_unless_all_are_wanted():
    layers = [layer("fc"), layer("drop", param_bytes=0)]

    assert labels(layers) == ["fc x1"]
    assert labels(layers, fold=False) == ["fc x1", "drop x1"]


def test_a_module_listed_twice_is_summed():
    [row] = fold_rows([layer("fc"), replace(layer("fc"), param_bytes=1)])

    assert row.one.param_bytes == 5


def test_a_small_model_needs_no_depth():
    assert choose_depth([layer(f"h.{i}.fc") for i in range(100)]) is None


def test_a_large_model_gets_the_deepest_table_that_a_screen_holds():
    layers = [
        layer(f"stage{i}.block{j}.conv{k}", param_bytes=1 + j + k) for i in range(4) for j in range(3) for k in range(5)
    ]

    depth = choose_depth(layers)

    assert depth == 2
    assert len(fold_rows(layers, depth=depth)) == 12


def test_a_model_that_is_wide_at_the_top_is_shown_at_depth_1():
    assert choose_depth([layer(f"fc{i}.a{i}") for i in range(99)]) == 1
