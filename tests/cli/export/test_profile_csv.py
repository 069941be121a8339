import csv
import io

from dnnmem.cli.export.profile_csv import COLUMNS, to_csv


def test_a_line_a_module_under_a_header_of_the_fields(gpt):
    lines = list(csv.DictReader(io.StringIO(to_csv(gpt.layers))))

    assert [line["module"] for line in lines] == [layer.module for layer in gpt.layers]
    assert tuple(lines[0]) == COLUMNS
    assert [int(line["param_bytes"]) for line in lines] == [layer.param_bytes for layer in gpt.layers]


def test_unknown_seconds_are_empty_and_not_0(gpt):
    assert {line["forward_seconds"] for line in csv.DictReader(io.StringIO(to_csv(gpt.layers)))} == {""}
