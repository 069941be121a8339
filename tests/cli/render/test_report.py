import io

import pytest

from dnnmem.cli.console import make_console
from dnnmem.cli.render.report import View, print_report
from dnnmem.estimator.profile import Peak


def report(profile, width, **view):
    stream = io.StringIO()
    print_report(profile, make_console(stream, width=width), View(**view))
    return stream.getvalue()


def unknown_gpu(make_gpt, **changes):
    """The profile as a CPU gives it: nothing is known of a GPU."""
    nothing = {"workspace": None, "fragmentation": None, "context": None}
    return make_gpt(device="cpu", gpu=None, parts=nothing, usable_bytes=None, fits=None, **changes)


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_report_of_a_gpt(gpt, golden, width):
    golden(f"report-gpt-{width}.txt", report(gpt, width))


def test_the_report_with_everything_unfolded(gpt, golden):
    golden("report-gpt-all.txt", report(gpt, 100, everything=True))


def test_the_report_at_depth_1(gpt, golden):
    golden("report-gpt-depth-1.txt", report(gpt, 100, depth=1))


def test_the_report_of_a_cpu_where_much_is_unknown(make_gpt, golden):
    golden("report-cpu.txt", report(unknown_gpu(make_gpt, step_seconds=0.0123, notes=()), 100))


def test_the_report_in_ascii(gpt, golden):
    text = report(gpt, 100, unicode=False)
    golden("report-ascii.txt", text)
    assert text.isascii()


def test_what_does_not_fit_says_how_much_is_missing(make_gpt):
    profile = make_gpt(usable_bytes=2**30, fits=False)

    assert "DOES NOT FIT: 5.68 GiB is 4.68 GiB more than the 1.00 GiB usable on l4-24gb" in report(profile, 160)
    bound = make_gpt(usable_bytes=2**30, fits=False, facts={"shapes_bounded": 2})
    assert "DOES NOT FIT, by an upper bound: 5.68 GiB is 4.68 GiB more" in report(bound, 160)


def test_a_total_that_leaves_something_out_says_what(make_gpt):
    profile = make_gpt(parts={"context": None, "workspace": None})

    first = next(line for line in report(profile, 160).splitlines() if line.startswith("FITS"))
    assert first.endswith("free, without workspace and CUDA context")


def test_an_unknown_part_is_a_dash_with_its_reason_and_never_0(make_gpt):
    text = report(unknown_gpu(make_gpt), 100)

    lines = [line.split(None, 1) for line in text.splitlines() if line.startswith(("workspace", "fragmentation"))]
    assert [rest.split()[0] for _, rest in lines] == ["-", "-"]
    assert all("unknown without a GPU" in rest for _, rest in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(gpt, width):
    assert max(len(line) for line in report(gpt, width, everything=True).splitlines()) <= width


def test_the_stack_shows_what_sums_to_the_total(gpt):
    # GIVEN the lines of the stack  WHEN their shares are added
    lines = report(gpt, 100).split("\n\n")[1:3]
    shares = [float(line.split(" %")[0].split()[-1].strip("<")) for line in lines[1].splitlines() if "%" in line]
    # THEN they give the total's 100 %, but for rounding
    assert sum(shares[:-1]) == pytest.approx(shares[-1], abs=0.6)


def test_a_model_without_layers_and_memory_still_has_a_report(make_gpt):
    profile = make_gpt(
        layers=(), alive=(), notes=(), batch={}, versions={}, phases=(),
        peak=Peak(allocated_bytes=0, reserved_bytes=None, phase="forward", module="", op="", source=""),
    )  # fmt: skip

    text = report(profile, 80)
    assert "in forward, in the model itself\n0 B allocated" in text
    assert "Layers" not in text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_verdict_stands_at_the_end_too_where_the_beginning_scrolls_away(gpt, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    for height, times in (("30", 2), ("200", 1)):
        monkeypatch.setenv("LINES", height)
        terminal = Terminal()
        print_report(gpt, make_console(terminal, width=100), View())
        assert terminal.getvalue().count("FITS: 5.68 GiB") == times


def test_a_terminal_gets_colour_and_a_pipe_does_not(gpt, monkeypatch):
    # GIVEN a terminal and a pipe  WHEN both get the report
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    print_report(gpt, make_console(terminal, width=100), View())
    text = report(gpt, 100)
    # THEN one has escape sequences, the other has neither these nor blanks at the ends of lines
    assert "\x1b[" in terminal.getvalue()
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
