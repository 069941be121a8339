from dnnmem.cli.render.markdown import to_markdown
from dnnmem.cli.render.report import View


def test_the_report_as_markdown(gpt, golden):
    golden("report-gpt.md", to_markdown(gpt, View()))


def test_every_table_line_has_as_many_cells_as_its_head(gpt):
    tables = [block.splitlines() for block in to_markdown(gpt, View()).split("\n\n") if block.startswith("|")]

    assert len(tables) == 2
    for head, *lines in tables:
        assert {line.replace("\\|", "").count("|") for line in lines} == {head.count("|")}
