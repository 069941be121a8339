"""The command `dnnmem`: which commands there are, and how a failure becomes a message and an exit code.

This is the one place that does the latter:

    DnnmemError            error: what is wrong, hint: the way out      exit 1-5, as its class says
    a wrong option         the same, from the option parser             exit 2
    Ctrl-C                 nothing but a line end                       exit 130
    a closed pipe          nothing: `dnnmem profile ... | head` is fine  exit 141, as the shell reports it
    anything else          dnnmem's own fault, and it says so           exit 5

Torch, pandas, pydantic and numpy load inside the commands that need them: `dnnmem --help` is quick.

>>> run(["profile"], stderr=(text := io.StringIO()))
2
>>> text.getvalue().splitlines()
["error: Missing argument 'TARGET'", 'hint: dnnmem profile --help lists the options']
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from dnnmem import __version__
from dnnmem.cli.commands.batch import batch
from dnnmem.cli.commands.calibrate import calibrate
from dnnmem.cli.commands.check import check
from dnnmem.cli.commands.devices import devices
from dnnmem.cli.commands.diff import diff
from dnnmem.cli.commands.doctor import doctor
from dnnmem.cli.commands.estimate import estimate
from dnnmem.cli.commands.explain import explain
from dnnmem.cli.commands.export import export
from dnnmem.cli.commands.init import init
from dnnmem.cli.commands.plan import plan
from dnnmem.cli.commands.profile import profile
from dnnmem.cli.commands.recommend import recommend
from dnnmem.cli.commands.run import run as run_command
from dnnmem.cli.commands.validate import validate
from dnnmem.cli.commands.view import view
from dnnmem.cli.console import wants_color
from dnnmem.estimator.errors import DnnmemError, InternalError, UnsupportedError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says of a folder that takes no more, which is no fault of dnnmem."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""

BROKEN_PIPE = 141
"""Exit code when the reader of a pipe has gone: 128 + SIGPIPE."""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_EPILOG = """\b
From a model to a script that trains it, with no GPU:
  dnnmem init                                             writes model.py
  dnnmem profile model.py                                 does it fit?
  dnnmem recommend model.py --gpus 8 --gpu h100           the best ways
  dnnmem export model.py --plan 1 --to fsdp2 -o train.py  one as a script
  dnnmem run --gpus 8 --gpu h100 -- train.py              tried on no GPU
"""

app = typer.Typer(
    name="dnnmem",
    help="Where every byte and second of a PyTorch training step goes.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
    epilog=_EPILOG,
)
_COMMANDS = (
    (init, "Write a commented model.py to start from."),
    (profile, "Where every byte and second of one training step goes."),
    (recommend, "The best ways to run the step on some GPUs, ranked."),
    (plan, "What to recompute, or to offload, so that the step fits a budget."),
    (explain, "One of the recommended plans in full; what-if."),
    (export, "A plan as a script, or a framework's configuration."),
    (run_command, "Run an unchanged training script on GPUs that need not be here."),
    (estimate, "Time and memory of the step by one plan of yours."),
    (batch, "The largest batch that fits a GPU, and the fastest."),
    (check, "Fail where a step needs more memory than was accepted; for CI."),
    (diff, "What grew between two steps, and since which line."),
    (view, "A memory snapshot, or a saved step, as a report."),
    (devices, "The GPUs and nodes that --gpu and --cluster know."),
    (calibrate, "Measure this machine's rates, or fit them to your own steps."),
    (validate, "How far predictions are from published training steps."),
    (doctor, "What works on this machine."),
)
"""In the order in which they are needed, each with its line in `dnnmem --help`."""
for _command, _words in _COMMANDS:
    _settings = {**_CONTEXT, "allow_interspersed_args": False} if _command is run_command else _CONTEXT
    app.command(_command.__name__, short_help=_words, context_settings=_settings)(_command)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - the signature of an option's callback
    if wanted:
        typer.echo(f"dnnmem {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Where every byte and second of a PyTorch training step goes."""
    del version  # its callback has printed it
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The console entry: run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character of a path still gets the rest
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str], *, stderr: TextIO | None = None) -> int:
    """Run the command line and return its exit code; failures are told on `stderr`."""
    stderr = stderr or sys.stderr
    try:
        code = typer.main.get_command(app)(list(arguments), prog_name="dnnmem", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        stderr.write("\n")
        return INTERRUPTED
    except BrokenPipeError:
        return _leave_pipe()
    except (
        SystemExit
    ) as exit_:  # the option parser's own answer to a closed pipe is exit 1, which means "over budget" here
        return exit_.code if isinstance(exit_.code, int) and exit_.code != 1 else _leave_pipe()
    except Exception as error:  # noqa: BLE001 - the last line of defence: people never see a traceback they did not ask for
        return _tell(error, stderr)
    return code if isinstance(code, int) else 0


def _leave_pipe() -> int:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - the interpreter flushes it on its way out
    return BROKEN_PIPE


def _tell(error: Exception, stderr: TextIO) -> int:
    if os.environ.get("DNNMEM_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error, file=stderr)
    known = error if isinstance(error, DnnmemError) else _as_known(error)
    color = wants_color(stderr)
    stderr.write(f"{_paint('error:', '1;31', color=color)} {known.message}\n")
    first, *more = known.hint.splitlines() or [""]
    if first:
        stderr.write(f"{_paint('hint:', '1;36', color=color)} {first}\n")
    stderr.writelines(f"      {line}\n" if line else "\n" for line in more)
    return known.exit_code


def _paint(text: str, code: str, *, color: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if color else text


class _OptionError(DnnmemError):
    """What the option parser says."""

    exit_code = 2


def _as_known(error: Exception) -> DnnmemError:
    if hasattr(error, "format_message"):  # click's ClickException, which typer carries under its own name since 0.26
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "dnnmem"
        return _OptionError(error.format_message().rstrip("."), hint=f"{command} --help lists the options")
    if isinstance(error, OSError) and (error.errno in _NO_ROOM or "temporary directory" in str(error)):
        where = f"{error.filename}: " if error.filename else ""
        return UnsupportedError(
            f"a file could not be written: {where}{error.strerror or error}",
            hint="free some room, or set TMPDIR and DNNMEM_CACHE to folders that can be written",
        )
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"  # noqa: PTH119 - no pathlib for one word
    return InternalError(
        f"{type(error).__name__} at {place}: {error}. This is a fault of dnnmem, not of your model",
        hint="please report it with this command line, the output of `dnnmem doctor`,\n"
        "and the traceback that the same command prints with DNNMEM_DEBUG=1",
    )
