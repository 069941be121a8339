"""Pictures hold what they are told to: areas are bytes, strips add up, circles stay inside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnmem.cli.render.html.curve import areas, draw
from dnnmem.cli.render.html.lanes import lanes
from dnnmem.cli.render.html.pareto import nice_ticks, plot
from dnnmem.cli.render.html.strip import memory_strip
from dnnmem.cli.render.html.treemap import squarify, treemap
from dnnmem.estimator.simulate import simulate
from dnnmem.estimator.trace import Lane, Op, Phase

SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=30).map(lambda sizes: sorted(sizes, reverse=True))


@given(SIZES, st.floats(1, 1000), st.floats(1, 1000))
@settings(max_examples=60, deadline=None)
def test_squares_have_the_areas_that_were_asked_for_and_lie_side_by_side(sizes, width, height):
    boxes = squarify(sizes, 0, 0, width, height)
    scale = width * height / sum(sizes)
    assert [w * h for _, _, w, h in boxes] == pytest.approx([size * scale for size in sizes], rel=1e-6)
    for x, y, w, h in boxes:
        assert x >= -1e-6 <= y
        assert x + w <= width * (1 + 1e-6)
        assert y + h <= height * (1 + 1e-6)
    centres = [(x + w / 2, y + h / 2) for x, y, w, h in boxes]
    for i, (x, y, w, h) in enumerate(boxes):
        inside = [j for j, (cx, cy) in enumerate(centres) if x < cx < x + w and y < cy < y + h]
        assert inside in ([i], [])  # [] where a box is too thin for its centre to be told


def test_equal_squares_are_squares():
    assert all(w == pytest.approx(h) for _, _, w, h in squarify([1] * 16, 0, 0, 8, 8))


def test_the_treemap_covers_the_whole_and_groups_cover_their_cells():
    held = {("h.0.a", "param"): 50, ("h.0.b", "temp"): 30, ("h.1", "param"): 20, ("", "input"): 7, ("z", "grad"): 0}
    cells, groups = treemap(held)
    assert sum(w * h for *_, w, h in (cell.box for cell in cells)) == pytest.approx(100 * 100, rel=1e-3)
    # `h` only numbers its blocks and holds most: they show in its place, and open
    assert [(g.label, g.screen, g.is_screen) for g in groups] == [
        ("h.0", "", True), ("a", "h.0", False), ("b", "h.0", False), ("h.1", "", False),
    ]  # fmt: skip


def test_a_treemap_of_many_thousand_modules_stays_drawable():
    held = {(f"h.{i}.m{j}", kind): 1 for i in range(100) for j in range(20) for kind in ("param", "grad", "optimizer")}
    cells, _ = treemap(held)
    assert len(cells) <= 2500
    assert sum(w * h for *_, w, h in (cell.box for cell in cells)) == pytest.approx(100 * 100, rel=1e-2)


def test_areas_stand_on_each_other_and_reach_the_top_at_the_peak(gpt):
    curve = draw(gpt.timeline, gpt.phases, None)
    tops = [min(int(point.split(",")[1]) for point in path.strip("MZ").split("L")) for _, path in curve.areas]
    assert tops == sorted(tops, reverse=True)
    assert tops[-1] == 0
    assert [name for name, *_ in curve.phases] == ["forward", "backward", "step"]
    assert curve.phases[-1][2] == 100


def test_a_kind_that_holds_nothing_is_as_thick_as_nothing():
    assert areas({"param": [2, 2], "temp": [0, 0]}, top=2)[1] == ("temp", "M0,0L0,0L1,0L1,0Z")


def test_a_strip_is_as_long_as_the_gpu_or_as_what_is_needed(make_gpt):
    for usable in (22 * 2**30, 2**30):
        profile = make_gpt(usable_bytes=usable)
        strip = memory_strip(profile)
        whole = max(usable, profile.total_bytes) * 1.02
        assert sum(p.width for p in strip.pieces) == pytest.approx(100 * profile.total_bytes / whole, abs=0.05)
        assert strip.mark == pytest.approx(100 * usable / whole, abs=0.01)
        assert strip.pieces[-1].x + strip.pieces[-1].width <= 100


def test_lanes_join_what_belongs_together_and_keep_gaps():
    # GIVEN two modules, then a wait for the other lane  WHEN it is drawn
    ops = [Op(name="a", module=("x", "y", "z")), Op(name="b", module=("x", "y")), Op(name="c", module=("w",)),
           Op(name="dnnmem.all_gather.dp_shard", lane=Lane.COMM, writes=(1,)),
           Op(name="d", module=("w",), phase=Phase.BACKWARD, reads=(1,))]  # fmt: skip
    compute, comm = lanes(ops, simulate(ops, [1, 1, 1, 5, 2], [0] * 5))
    # THEN ops of `x.y` are one piece, and the wait is empty
    assert [(p.title.split(":")[0], p.x, p.width) for p in compute.pieces] == [
        ("forward, x.y", 0, 20), ("forward, w", 20, 10), ("backward, w", 80, 20),
    ]  # fmt: skip
    assert [(p.x, p.width) for p in comm.pieces] == [(30, 50)]


def test_so_many_pieces_are_drawn_as_whole_phases():
    ops = [Op(name="a", module=(f"m{i}", "x")) for i in range(2000)]
    (compute,) = lanes(ops, simulate(ops, np.ones(2000), np.zeros(2000)))
    assert [(p.x, p.width) for p in compute.pieces] == [(0, 100)]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low, span):
    ticks = nice_ticks(low, low + span)
    assert len(ticks) <= 8
    assert all(low - span * 1e-3 <= tick <= low + span * 1.001 for tick in ticks)


def test_candidates_lie_inside_the_plot_and_the_limit_shows_where_it_is_near(make_report):
    report = make_report()
    found = plot([report.baseline, *report.candidates], 80 * 2**30)
    assert found.limit is None  # 80 GiB are far above what these need
    near = plot([report.baseline, *report.candidates], report.candidates[0].estimate.peak_reserved_bytes)
    assert 0 < near.limit < 100
    for point in (*found.points, *near.points):
        assert 0 <= point.x <= 100
        assert 0 <= point.y <= 100
    assert {point.rank for point in found.points} == {0, 1, 2}
    assert plot(report.candidates[:1], 1) is None
