"""The page on pipelines is what the code draws."""

from __future__ import annotations

import importlib.util

import pytest

from dnnmem.estimator.plan_pipeline import PIPELINES


@pytest.fixture(scope="module")
def maker(root):
    """The script that writes it."""
    spec = importlib.util.spec_from_file_location("pipeline_page", root / "benchmarks" / "pipeline_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_code_draws(maker):
    assert maker.PAGE.read_text("utf-8") == maker.page(), "python benchmarks/pipeline_page.py writes it anew"


def test_it_shows_every_schedule(maker):
    assert {*maker.ABOUT, "dapple"} == {*PIPELINES}
