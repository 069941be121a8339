from pathlib import Path

import pytest

from dnnmem.cli.commands.outputs import check_outputs, plan_outputs
from dnnmem.estimator.errors import UsageError


@pytest.mark.parametrize(
    ("given", "planned"),
    [
        ({}, [("table", None)]),
        ({"form": "md"}, [("md", None)]),
        ({"default": "csv"}, [("csv", None)]),
        ({"form": "json", "default": "csv"}, [("json", None)]),
        ({"json": "-"}, [("json", None)]),
        ({"json": "-", "form": "json"}, [("json", None)]),
        ({"json": "a.json"}, [("table", None), ("json", Path("a.json"))]),
        ({"json": "-", "csv": "a.csv"}, [("json", None), ("csv", Path("a.csv"))]),
        ({"json": "-", "default": "csv"}, [("json", None)]),
        ({"json": "a.json", "html": "a.html"}, [("table", None), ("json", Path("a.json")), ("html", Path("a.html"))]),
        ({"html": "-"}, [("html", None)]),
    ],
)
def test_what_goes_where(given, planned):
    assert list(plan_outputs(**{"form": None, "default": "table", "json": None, "csv": None, **given})) == planned


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json": "-", "csv": "-"}, "--json - and --csv - both want stdout"),
        ({"json": "-", "html": "-"}, "--json - and --html - both want stdout"),
        ({"json": "-", "form": "table"}, "--json - and --format table both want stdout"),
        ({"form": "html"}, "--format is 'html'; it must be one of table, json, csv, md"),
        ({"default": "yaml"}, "--format is 'yaml'"),
    ],
)
def test_what_cannot_be(given, message):
    with pytest.raises(UsageError, match=message):
        plan_outputs(**{"form": None, "default": "table", "json": None, "csv": None, **given})


def test_two_options_cannot_share_a_file(tmp_path):
    outputs = plan_outputs(form=None, default="table", json=str(tmp_path / "a"), csv=str(tmp_path / "a"))

    with pytest.raises(UsageError, match="is named by two options"):
        check_outputs(outputs, None)
