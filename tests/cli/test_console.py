import io

import pytest

from dnnmem.cli.console import DEFAULT_WIDTH, MAX_WIDTH, MIN_WIDTH, is_unicode, make_console, wants_color, width_of


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environ", "no_color", "wanted"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, False, True),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_a_terminal_has_colour_unless_told_otherwise(environ, no_color, wanted):
    assert wants_color(Terminal(), environ=environ, no_color=no_color) is wanted


def test_a_pipe_has_no_colour():
    assert not wants_color(io.StringIO(), environ={})


def test_no_escape_sequence_without_colour():
    stream = Terminal()

    make_console(stream, width=60, no_color=True).print("words", style="bold red")

    assert stream.getvalue() == "words\n"


def test_a_pipe_has_the_default_width():
    assert width_of(io.StringIO(), environ={}) == DEFAULT_WIDTH


@pytest.mark.parametrize(
    ("columns", "width"), [("72", 72), ("10", MIN_WIDTH), ("999", MAX_WIDTH), ("x", DEFAULT_WIDTH)]
)
def test_columns_sets_the_width_within_reason(columns, width):
    assert width_of(io.StringIO(), environ={"COLUMNS": columns}) == width


def test_a_latin_stream_has_no_block_characters():
    assert not is_unicode(io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert is_unicode(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
