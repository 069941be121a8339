"""Which ops a block keeps, as text: what is read is what is written, and what is wrong is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.keep_text import Rule, absent, base_name, keep_text, parse_keep, rule_of
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change, settings

OPS = st.dictionaries(
    st.sampled_from(["addmm", "attention", "_softmax", "native_layer_norm"]),
    st.lists(st.integers(0, 9), unique=True, max_size=3).map(tuple),
)


@st.composite
def rules(draw):
    found, first = [], 0
    for ops in draw(st.lists(OPS, min_size=1, max_size=3)):
        last = first + draw(st.integers(0, 3))
        found.append(Rule(blocks=((first, last),), ops=ops, whole=not ops and draw(st.booleans())))
        first = last + 1 + draw(st.integers(0, 2))
    return tuple(found)


@given(rules())
def test_rules_are_written_as_read(found):
    assert parse_keep(keep_text(found)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no op"),
        ("addmm.x", r"'addmm\.x' is no op"),
        ("addmm,addmm.1", "named twice"),
        ("all,addmm", "'all' is no op"),
        ("3-1:all", "count up"),
        ("a:all", "'a' is no block"),
        ("0-3:all/3:input", "block 3 has two rules"),
        ("all/0:input", "each begins with its blocks"),
        ("0:gelu/", "'' is no op"),
    ],
)
def test_what_is_no_rule_is_told(text, said):
    with pytest.raises(UsageError, match=said):
        parse_keep(text)


def test_blocks_that_a_model_lacks_are_told():
    assert parse_keep("0-2:all", 3)
    with pytest.raises(UsageError, match="the model has 3 blocks, 0 to 2"):
        parse_keep("0-3:all", 3)


def test_a_rule_is_a_blocks():
    found = parse_keep("0,2-3:gelu/5:all/6:input")
    assert [rule_of(found, n) is not None for n in range(8)] == [True, False, True, True, False, True, True, False]
    kept = [rule_of(found, n).keeps("gelu", 7) for n in (0, 5, 6)]
    assert kept == [True, True, False]
    # AND one without blocks is everyone's
    assert rule_of(parse_keep("gelu.1"), 99).keeps("gelu", 1)


def test_all_that_takes_long_is_a_word():
    [rule] = parse_keep("products,gelu.0")
    kept = [name for name in ("addmm", "convolution", "attention", "gelu", "native_layer_norm") if rule.keeps(name, 0)]
    assert kept == ["addmm", "convolution", "attention", "gelu"]
    assert not absent(rule, {"gelu": 1, "bmm": 1})
    assert absent(rule, {"gelu": 1}) == "products"
    with pytest.raises(UsageError, match="no op"):
        parse_keep("products.1")


def test_names_that_a_block_lacks_are_found():
    [rule] = parse_keep("addmm.0.3,gelu")
    assert not absent(rule, {"addmm": 4, "gelu": 1})
    assert absent(rule, {"addmm": 3, "gelu": 1}) == "addmm.3"
    assert absent(rule, {"addmm": 4}) == "gelu"


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("aten.addmm.default", "addmm"), ("aten.add_.Tensor", "add"), ("aten._softmax.default", "_softmax"),
        ("aten._scaled_dot_product_efficient_attention.default", "attention"), ("flash_attn.fwd", "attention"),
        ("dnnmem.reduce_scatter.tp", "reduce_scatter"),
    ],
)  # fmt: skip
def test_names_are_without_overloads(name, base):
    assert base_name(name) == base


def test_a_plan_holds_rules_under_their_policy_only():
    plan = change(Plan(), ["remat.policy=ops", "remat.keep=0-1:all/2:addmm.0"])
    assert change(Plan(), settings(plan)) == plan
    for wrong in (["remat.policy=ops"], ["remat.keep=gelu"], ["remat.policy=ops", "remat.keep=1.gelu"]):
        with pytest.raises(UsageError, match=r"remat\.keep"):
            change(Plan(), wrong)
