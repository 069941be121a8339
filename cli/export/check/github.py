"""A check as workflow commands of GitHub Actions: an annotation at the line of the layer that grew most.

::error file=models/net.py,line=12,title=dnnmem check::model.py: its peak grew by 3.4 % ...

Values are escaped as GitHub's toolkit does, so that no name of a layer becomes a command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dnnmem.cli.check_run import Checked
from dnnmem.cli.export.check.places import first_place, in_repository
from dnnmem.cli.render.check import label_of, notices, signed, why_of
from dnnmem.estimator.baseline import blame

_LEVELS = {"regressed": "error", "over budget": "error", "improved": "notice", "new": "notice"}


def render(found: Sequence[Checked]) -> str:
    """A line for each step that is not as accepted."""
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: Sequence[Checked]) -> Iterator[str]:
    for step in found:
        if step.verdict is None:
            yield _command("error", None, f"{step.name}: {step.error.message if step.error else ''}")
            continue
        level = "notice" if step.accepted and not step.fails else _LEVELS.get(step.verdict.outcome)
        if level is not None:
            lines = blame(step.verdict)
            said = [
                *notices(step),
                *(f"{label_of(line)} {signed(line.grown_bytes)}: {why_of(line)}" for line in lines[:5]),
            ]
            yield _command(level, first_place(lines), "\n".join(said))


def _command(level: str, place: tuple[str, int] | None, message: str) -> str:
    where = f"file={_property(in_repository(place[0]))},line={place[1]}," if place else ""
    return f"::{level} {where}title=dnnmem check::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
