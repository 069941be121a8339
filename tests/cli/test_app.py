import resource
import subprocess
import sys

import pytest
import typer

from dnnmem import __version__
from dnnmem.cli import app
from dnnmem.estimator.errors import (
    InternalError,
    ModelError,
    RegressionError,
    TraceError,
    UnsupportedError,
    UsageError,
)

HEAVY = {"torch", "numpy", "pandas", "pydantic", "rich", "jinja2"}


def run_with(monkeypatch, capsys, behaviour):
    """Run `dnnmem` with one command, which does what `behaviour` does; returns exit code and stderr."""
    front = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    front.command()(behaviour)
    monkeypatch.setattr(app, "app", front)
    code = app.run([])
    return code, capsys.readouterr().err


def raising(error):
    def behaviour():
        raise error

    return behaviour


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (RegressionError, 1),
        (UsageError, 2),
        (ModelError, 3),
        (UnsupportedError, 4),
        (InternalError, 5),
        (TraceError, 5),
    ],
)
def test_a_known_error_is_its_message_its_hint_and_its_exit_code(monkeypatch, capsys, kind, code):
    error = kind("batch is 0; it must be 1", hint="give 1\nor 2")

    assert run_with(monkeypatch, capsys, raising(error)) == (
        code,
        "error: batch is 0; it must be 1\nhint: give 1\n      or 2\n",
    )


def test_an_error_without_hint_is_one_line(monkeypatch, capsys):
    assert run_with(monkeypatch, capsys, raising(UsageError("no"))) == (2, "error: no\n")


def test_an_unexpected_error_is_owned_and_says_how_to_report_it(monkeypatch, capsys):
    code, text = run_with(monkeypatch, capsys, raising(ZeroDivisionError("division by zero")))

    assert code == 5
    assert text.startswith("error: ZeroDivisionError at test_app.py:")
    assert "a fault of dnnmem, not of your model" in text
    assert "DNNMEM_DEBUG=1" in text
    assert "Traceback" not in text


def test_debug_shows_the_traceback_too(monkeypatch, capsys):
    monkeypatch.setenv("DNNMEM_DEBUG", "1")

    code, text = run_with(monkeypatch, capsys, raising(ZeroDivisionError("division by zero")))

    assert code == 5
    assert "Traceback (most recent call last)" in text


def test_ctrl_c_is_clean(monkeypatch, capsys):
    assert run_with(monkeypatch, capsys, raising(KeyboardInterrupt())) == (130, "")


def test_a_closed_pipe_is_no_error(monkeypatch, capsys):
    code, text = run_with(monkeypatch, capsys, raising(BrokenPipeError(32, "Broken pipe")))

    assert (code, text) == (141, "")


def test_a_reader_that_leaves_early_sees_no_traceback():
    program = (
        "import sys\nfrom dnnmem.cli import app\n"
        "def flood():\n    for _ in range(100000): sys.stdout.write('x' * 80 + chr(10))\n"
        "import typer\napp.app = typer.Typer(rich_markup_mode=None)\napp.app.command()(flood)\napp.main()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 141


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profle"], "No such command 'profle'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["profile"], "Missing argument 'TARGET'"),
        (["profile", "m.py", "--batch", "many"], "Invalid value for '--batch'"),
        (["profile", "m.py", "--josn", "-"], "No such option: --josn"),
        (["profile", "m.py", "more"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_one_error_with_exit_code_2(capsys, arguments, message):
    assert app.run(arguments) == 2

    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: dnnmem")
    assert hint.endswith("--help lists the options")


def test_version_is_the_package_version(capsys):
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == f"dnnmem {__version__}\n"


def test_help_lists_the_commands(capsys):
    assert app.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in ("profile", "init", "devices", "doctor"))


def test_help_loads_nothing_heavy():
    program = "import sys; from dnnmem.cli import app; app.run(['--help']); print(*sys.modules, file=sys.stderr)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert HEAVY.isdisjoint(done.stderr.split())


def test_help_is_quick():
    # GIVEN a machine that may be busy with other tests  WHEN the processor's seconds are counted, not the clock's
    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "dnnmem", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # THEN they are what is promised for a quiet one
    assert min(seconds() for _ in range(3)) < 0.3
