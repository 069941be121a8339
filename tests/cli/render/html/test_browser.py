"""Pages in a real browser: what sorts, filters, opens and is reached by keyboard; light, dark, narrow, printed."""

from __future__ import annotations

import shutil

import pytest

from dnnmem.cli.commands.deliver import make_profile
from dnnmem.cli.render.html.difference import diff_page
from dnnmem.cli.render.html.profile import profile_page
from dnnmem.cli.render.html.recommend import recommend_page
from dnnmem.estimator.diff import Side, compare
from dnnmem.estimator.profile import Measurement

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(name="browser", scope="module")
def _browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"there is no Chromium: none of {', '.join(NAMES)} is on the PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory, many_blocks, make_report, hostile_profile, hostile_trace, make_gpt):
    own = make_profile(many_blocks, Measurement(), None)
    pages = {
        "profile": profile_page(own, many_blocks),
        "hostile": profile_page(hostile_profile, hostile_trace),
        "diff": diff_page(compare(Side(profile=hostile_profile), Side(profile=make_gpt()))),
        "recommend": recommend_page(make_report()),
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, "utf-8")
    return folder


@pytest.fixture(name="visit")
def _visit(browser, files):
    """Opens a page; at the end no error was told, nothing was asked of any server, and no dialog had opened."""
    contexts, wrong = [], []

    def visit(name, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: wrong.append(request.url) if "/pages" not in request.url else None)
        page.goto((files / f"{name}.html").as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [words for words in wrong if not words.startswith("data:,")] == []


@pytest.mark.parametrize("name", ["profile", "hostile", "diff", "recommend"])
@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_as_wide_as_its_window_in_either_colour(name, width, scheme, visit):
    page = visit(name, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert dark == (scheme == "dark")
    page.click("#theme")
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)") != dark
    assert page.pdf()[:5] == b"%PDF-"


def test_text_is_told_apart_from_its_ground_in_either_colour(visit):
    for scheme in ("light", "dark"):
        page = visit("profile", color_scheme=scheme)
        pairs = [("body", "body"), (".hint", "body"), (".about", "body"), ("a", ".top"), ("thead th", "thead th")]
        for front, back in pairs:
            ink = page.evaluate("s => getComputedStyle(document.querySelector(s)).color", front)
            ground = page.evaluate("s => getComputedStyle(document.querySelector(s)).backgroundColor", back)
            light, dark = sorted((_luminance(ink), _luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, front)


def _luminance(color):
    def linear(value):
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(part) / 255) for part in color[color.index("(") + 1 : -1].split(",")[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_table_sorts_by_exact_values_and_says_so(visit):
    page = visit("profile")
    head = page.locator("#layers thead th", has_text="at peak")
    for order in ("descending", "ascending"):
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == order
        values = page.eval_on_selector_all(
            "#layers tbody tr:not([hidden]) td:nth-child(3)", "cells => cells.map(cell => Number(cell.dataset.v))"
        )
        assert values == sorted(values, reverse=order == "descending")
    assert page.locator("#layers [aria-sort]").count() == 1


def test_a_filter_and_unfolding_choose_lines(visit):
    page = visit("profile")
    shown = page.locator("#layers tbody tr:not([hidden])")
    assert shown.count() == 12
    tools = page.locator('.tools[data-for="layers"]')
    tools.locator("[data-unfold]").check()
    assert shown.count() >= 144
    tools.locator("input[type=search]").fill("h.3. part_7")
    assert shown.count() == 1
    assert "1 of " in tools.locator("output").inner_text()


def test_the_arrow_keys_tell_what_is_alive_at_a_moment(visit):
    page = visit("profile")
    canvas, head = page.locator("#canvas"), page.locator("#moment-head")
    assert head.inner_text().startswith("At the peak: in forward, in h.11.part_11")
    canvas.focus()
    page.keyboard.press("End")
    assert head.inner_text().startswith("At this moment: in backward, in h.0.")
    assert canvas.get_attribute("aria-valuenow") == "239"
    page.keyboard.press("Home")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert canvas.get_attribute("aria-valuenow") == "20"
    assert "allocated" in canvas.get_attribute("aria-valuetext")
    assert page.locator("#moment-table tr").count() == 8
    page.keyboard.press("p")
    assert head.inner_text().startswith("At the peak")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 20)
    assert canvas.get_attribute("aria-valuenow") == "60"


def test_the_treemap_opens_and_closes_by_keyboard(visit):
    page = visit("profile")
    visible = page.locator('#treemap .group[visibility="visible"]')
    assert visible.count() == 12
    page.locator('.group[data-m="h.3"]').focus()
    page.keyboard.press("Enter")
    assert {visible.nth(i).get_attribute("data-s") for i in range(visible.count())} == {"h.3"}
    assert page.locator("#crumbs button").all_inner_texts() == ["whole model", "h.3"]
    page.keyboard.press("Escape")
    assert visible.count() == 12
    assert page.evaluate("document.activeElement.dataset.m") == "h.3"
    page.locator('.group[data-m="h.5"]').click()
    page.locator("#crumbs button").first.click()
    assert page.locator("#crumbs").is_hidden()


def test_a_circle_leads_to_its_candidate_and_check_boxes_leave_some_out(visit):
    page = visit("recommend")
    point = page.locator('.point[href="#c2"]')
    point.focus()
    assert page.locator("#point").inner_text().startswith("Rank 2: ")
    page.keyboard.press("Enter")
    assert page.locator("#c2 details").first.get_attribute("open") is not None
    page.locator('.tools [data-need="pareto"]').check()
    bodies = page.locator("#ranking > tbody:not([hidden])")
    assert [bodies.nth(i).get_attribute("id") for i in range(bodies.count())] == ["c1"]


def test_candidates_sort_with_their_details(visit):
    page = visit("recommend")
    page.locator("#ranking thead button", has_text="step time").click()
    head = page.locator("#ranking thead th", has_text="step time")
    assert head.get_attribute("aria-sort") == "ascending"
    times = page.eval_on_selector_all("#ranking > tbody", "all => all.map(b => Number(b.rows[0].cells[3].dataset.v))")
    assert times == sorted(times)


def test_a_plan_is_copied_or_selected(visit):
    page = visit("recommend")
    page.locator("#c1 summary").first.click()
    page.locator("#c1 button.copy").first.click()
    page.wait_for_function("document.querySelector('#c1 button.copy').textContent !== 'Copy'")
    assert page.locator("#c1 button.copy").first.inner_text() in {"Copied", "Selected: press Ctrl+C"}


def test_without_scripts_there_are_static_tables(visit):
    page = visit("profile", java_script_enabled=False)
    assert page.locator("#layers tbody tr:visible").count() == 12
    assert page.locator("#moment-table tr").count() == 8
    assert page.locator("#theme").is_hidden()
    assert page.locator(".tools:visible").count() == 0
    page = visit("recommend", java_script_enabled=False)
    page.locator("#c1 summary").first.click()
    assert page.locator("#options-1").is_visible()
