from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dnnmem.cli.commands.deliver import make_profile
from dnnmem.cli.render.html.difference import diff_page
from dnnmem.cli.render.html.estimate import estimate_page
from dnnmem.cli.render.html.profile import profile_page
from dnnmem.cli.render.html.recommend import recommend_page
from dnnmem.estimator.cluster import find_cluster
from dnnmem.estimator.diff import Side, compare
from dnnmem.estimator.estimate import price
from dnnmem.estimator.local_step import local_step
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import change, from_json
from dnnmem.estimator.profile import Measurement
from dnnmem.estimator.step_time import time_layers, time_ops
from dnnmem.estimator.time_model import load
from dnnmem.estimator.trace import Kind
from tests.cli.render.html.conftest import HOSTILE, Page, check_safe


def estimated(trace, *settings):
    cluster = find_cluster("h100:8")
    model, step = load(cluster.device, None), local_step(trace, change(Plan(), settings), cluster)
    return Page(estimate_page(price(step, model), time_layers(step, model), step, time_ops(step, model)))


@pytest.fixture(name="pages", scope="module")
def _pages(hostile_profile, hostile_trace, make_report, make_gpt):
    """Every kind of page, made of names that want out of their place."""
    own = make_profile(hostile_trace, Measurement(), None)
    before = replace(own, target=HOSTILE[2], parts={**own.parts, "temp": None})
    return {
        "profile of a file": Page(profile_page(hostile_profile)),
        "profile of a step": Page(profile_page(own, hostile_trace)),
        "diff": Page(diff_page(compare(Side(profile=before), Side(profile=own, trace=hostile_trace)))),
        "diff of files": Page(diff_page(compare(Side(profile=hostile_profile), Side(profile=make_gpt())))),
        "estimate": estimated(hostile_trace),
        "recommend": Page(recommend_page(make_report())),
    }


KINDS = ("profile of a file", "profile of a step", "diff", "diff of files", "estimate", "recommend")


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_gets_out_of_its_place_and_nothing_is_loaded(pages, kind):
    # GIVEN a page of hostile names  WHEN it is taken apart as a browser does  THEN it has no element but ours
    page = pages[kind]
    check_safe(page)
    assert not page.open
    # AND the names are there to be read
    assert any(name in text for name in HOSTILE for text in page.texts)
    assert "49" not in page.texts


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_can_be_read_without_seeing_or_pointing(pages, kind):
    page = pages[kind]
    assert page.all("html", lang="en")
    assert page.all("a", class_="skip", href="#main")
    assert len(page.all("h1")) == len(page.all("main")) == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for a in page.all("a") if a["href"] != "#"}
    assert links <= set(ids)
    # AND what needs a script is hidden until one runs
    assert all("hidden" in a for a in page.all("button"))
    assert all("hidden" in a for a in page.all("div", class_="tools"))
    for svg in page.all("svg"):
        assert svg.get("role") not in {"img", "group"} or svg["aria-label"]


def test_the_parts_of_a_profile_add_up(gpt):
    page = Page(profile_page(gpt))
    rows = [a for tag, a in page.tags if tag == "td" and a.get("title", "").endswith(" bytes") and "data-v" in a]
    exact = [int(a["data-v"]) for a in rows]
    total = exact.index(gpt.total_bytes)
    assert sum(exact[:total]) == gpt.total_bytes
    assert f"{gpt.total_bytes:,} bytes" in page.source


def test_what_is_unknown_is_a_dash_and_never_0(make_gpt):
    nothing = {"workspace": None, "fragmentation": None, "context": None}
    page = Page(profile_page(make_gpt(device="cpu", gpu=None, parts=nothing, usable_bytes=None, fits=None)))
    assert page.texts.count("-") == 8  # three parts and their shares, step time, reserved
    assert "unknown without a GPU (--gpu NAME)" in page.texts
    assert not page.all("line", class_="limit")


def test_the_moments_of_a_profile_hold_what_is_alive(many_blocks):
    # GIVEN the page of a step  WHEN its moments are read
    profile = make_profile(many_blocks, Measurement(), None)
    data = Page(profile_page(profile, many_blocks)).data["curve-data"]
    # THEN the peak is among them with its bytes, and every moment lists the largest things, largest first
    assert len(data["moments"]) == 240
    where, sums, alive = data["moments"][data["peak"]]
    assert "in forward, in h.11.part_11, by aten.mm" in data["words"][where]
    peak = int(profile.timeline.allocated.max())
    assert data["words"][sums].startswith(f"{peak / 2**30:.2f} GiB allocated")
    assert 1 <= len(alive) <= 8
    for _, _, alive in data["moments"]:
        assert [line[5] for line in alive] == sorted((line[5] for line in alive), reverse=True)


def test_a_page_of_gpt_2s_depth_is_small_and_folds_its_blocks(many_blocks):
    profile = make_profile(many_blocks, Measurement(), None)
    text = profile_page(profile, many_blocks)
    page = Page(text)
    assert len(text.encode()) < 2**20
    assert len(page.all("tr", class_="unfolded")) >= 144
    assert all("hidden" in row for row in page.all("tr", class_="unfolded"))


def test_a_step_that_allocates_nothing_has_no_pictures(hostile_trace):
    empty = make_profile(replace(hostile_trace, ops=(), storages={}), Measurement(), None)
    page = Page(profile_page(empty, replace(hostile_trace, ops=(), storages={})))
    check_safe(page)
    assert not page.all("svg", class_="areas")


def test_a_comparison_tells_what_grew_and_what_shrank(make_gpt):
    before, after = make_gpt(), make_gpt(parts={"context": 2**29, "workspace": 0})
    page = Page(diff_page(compare(Side(profile=before), Side(profile=after))))
    bars = [a for a in page.all("rect") if a.get("class") in {"k-context", "k-workspace"} and "x" in a]
    zero = float(page.all("line", class_="gridline")[0]["x1"].rstrip("%"))
    sides = {a["class"]: float(a["x"].rstrip("%")) - zero for a in bars}
    assert sides["k-workspace"] < -1 < 0 <= sides["k-context"]
    assert "-32.0 MiB" in page.texts


@pytest.mark.parametrize("settings", [(), ("batch.accumulation=3",)])
def test_an_estimate_shows_every_lane_that_works_and_shares_that_add_up(hostile_trace, settings):
    page = estimated(hostile_trace, *settings)
    lanes = [a["aria-label"] for a in page.all("svg", role="img") if " works " in a["aria-label"]]
    assert [label.split()[0] for label in lanes] == ["compute"]
    bounds = page.texts.index("waits for")
    assert page.texts[bounds + 1 : bounds + 3] == ["seconds", "share"]


def test_a_recommendation_ranks_says_why_and_gives_the_plan(make_report):
    report = make_report()
    page = Page(recommend_page(report))
    bodies = [a for a in page.all("tbody") if a.get("id", "").startswith("c")]
    assert [a["id"] for a in bodies] == ["c0", "c1", "c2"]
    assert bodies[1]["data-tags"].split() == ["first", "fits", "same", "pareto", "ran"]
    assert "same" not in bodies[2]["data-tags"]
    assert "--set mesh.dp_replicate=8 --set sharding.strategy=ddp" in page.texts
    files = [text for text in page.texts if text.startswith("{\n")]
    assert [from_json(json.loads(text)) for text in files] == [
        c.estimate.plan for c in (report.baseline, *report.candidates)
    ]
    assert page.texts.count("tie") == 3  # two candidates and the key
    assert "out of memory" in " ".join(page.texts)
    assert len([a for a in page.all("a") if "point" in a.get("class", "")]) == 3


def test_where_nothing_fits_the_page_says_so_first(make_report):
    page = Page(recommend_page(make_report(nothing_fits="the nearest plan misses 1.00 GiB")))
    assert page.texts.index("NOTHING FITS") < page.texts.index("Candidates, ranked")
    assert page.all("p", class_="verdict bad")


def test_no_candidates_at_all_are_no_error(make_report):
    page = Page(recommend_page(make_report(candidates=(), baseline=None)))
    check_safe(page)
    assert "No plan was found" in page.texts
    assert not page.all("svg", class_="scatter")


def test_an_unknown_kind_has_a_colour_of_the_style(hostile_profile):
    page = Page(profile_page(hostile_profile))
    used = {word for _, a in page.tags for word in (a.get("class") or "").split() if word.startswith("k-")}
    assert used <= {f"k-{kind}" for kind in (*(k.value for k in Kind), "workspace", "fragmentation", "context")}
