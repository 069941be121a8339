"""Results that show themselves: the types of `dnnmem.estimator` with a report for people, a page for notebooks.

A `ShownProfile` is a `Profile` in all else; the estimator stays free of what renders.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from dnnmem.cli.check_run import Checked
from dnnmem.estimator.diff import Difference
from dnnmem.estimator.estimate import Estimate
from dnnmem.estimator.local_step import LocalStep
from dnnmem.estimator.profile import Profile
from dnnmem.estimator.report import Report
from dnnmem.estimator.step_time import LayerTime
from dnnmem.estimator.time_model import TimeModel
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

_WIDTH = 100
"""Columns of a report that is made into a str."""
_HEIGHT = 1 << 20
"""Lines of a terminal that never scrolls."""


class Shown:
    """What shows itself, by what it says to a console and by its page."""

    __slots__ = ()

    def _write(self, console: Console) -> None:
        raise NotImplementedError

    def _page(self) -> str:
        return f"<!doctype html><meta charset=utf-8><pre>{html.escape(str(self))}</pre>"

    def _headline(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        """The report, as the command prints it into a file."""
        from rich.console import Console

        text = io.StringIO()
        self._write(Console(file=text, width=_WIDTH, height=_HEIGHT, no_color=True, force_terminal=False))
        return text.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        """One line."""
        return f"<{type(self).__mro__[2].__name__}: {self._headline()}>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """The report, in the colours and the width of `console`."""
        from rich.console import Console
        from rich.text import Text

        text = io.StringIO()
        inner = Console(
            file=text, width=options.max_width, height=_HEIGHT, no_color=console.no_color,
            force_terminal=not console.no_color, color_system="truecolor", legacy_windows=False,
        )  # fmt: skip
        self._write(inner)
        yield Text.from_ansi(text.getvalue().rstrip("\n"), no_wrap=True)

    def _repr_html_(self) -> str:
        """The page, in a frame of its own: nothing of it touches the notebook."""
        return (
            f'<iframe srcdoc="{html.escape(self._page(), quote=True)}" sandbox="allow-scripts" '
            'style="width: 100%; height: 36em; border: 1px solid #8888"></iframe>'
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ShownProfile(Shown, Profile):
    """A profile, with the trace it was made of."""

    trace: Trace | None = field(default=None, compare=False)
    """The step, operator by operator: for `dnnmem.estimate`, `diff` and `recommend`; None if only a profile is left."""

    def _write(self, console: Console) -> None:
        from dnnmem.cli.render.report import View, print_report

        print_report(self, console, View())

    def _page(self) -> str:
        from dnnmem.cli.render.html.profile import profile_page

        return profile_page(self, self.trace)

    def _headline(self) -> str:
        where = self.device if self.gpu is None else f"{self.device} {self.gpu}"
        return f"{self.target} on {where}, {format_bytes(self.total_bytes)}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ShownEstimate(Shown, Estimate):
    """An estimate, with the step and the rates it was made of."""

    step: LocalStep = field(compare=False)
    """The step, as one rank runs it."""
    model: TimeModel = field(compare=False)
    """The rates."""
    layers: tuple[LayerTime, ...] = field(compare=False)
    """Seconds by module."""

    def _write(self, console: Console) -> None:
        from dnnmem.cli.render.estimate import print_estimate

        print_estimate(self.step.recorded, self, self.layers, console, top=20)

    def _page(self) -> str:
        from dnnmem.cli.render.html.estimate import estimate_page
        from dnnmem.estimator.step_time import time_ops

        return estimate_page(self, self.layers, self.step, time_ops(self.step, self.model))

    def _headline(self) -> str:
        from dnnmem.cli.render.estimate import memory_words

        return f"{self.step.recorded.origin.target} on {self.cluster.name}; {memory_words(self)}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ShownReport(Shown, Report):
    """The report of `dnnmem.recommend`."""

    def _write(self, console: Console) -> None:
        from dnnmem.cli.render.recommend import print_report

        print_report(self, console)

    def _page(self) -> str:
        from dnnmem.cli.render.html.recommend import recommend_page

        return recommend_page(self)

    def _headline(self) -> str:
        return f"{len(self.candidates)} candidates"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ShownCheck(Shown, Checked):
    """What `dnnmem.check` found for one target."""

    def _write(self, console: Console) -> None:
        from dnnmem.cli.render.check import print_check

        print_check([self], console)

    def _headline(self) -> str:
        return f"{self.name}: {self.verdict.outcome if self.verdict is not None else 'failed'}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ShownDifference(Shown, Difference):
    """What `dnnmem.diff` found."""

    def _write(self, console: Console) -> None:
        from dnnmem.cli.render.difference import print_difference

        print_difference(self, console, top=20)

    def _page(self) -> str:
        from dnnmem.cli.render.html.difference import diff_page

        return diff_page(self)

    def _headline(self) -> str:
        return f"{self.grown_bytes:+,} bytes"


Kind = TypeVar("Kind", bound=Shown)


def shown(kind: type[Kind], value: Any, **more: object) -> Kind:  # noqa: ANN401 - any of the dataclasses
    """`value` as the `kind` that shows it, with what that kind has besides."""
    return kind(**{f.name: getattr(value, f.name) for f in fields(value)}, **more)
