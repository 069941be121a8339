"""How a step's report gets out: saved trace, files, stdout, each whole or not at all.

Trace, Measurement -> Profile -> every report that was asked for
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.cli.commands.outputs import Output

if TYPE_CHECKING:
    from dnnmem.cli.render.report import View
    from dnnmem.estimator.device import Device
    from dnnmem.estimator.profile import Measurement, Profile
    from dnnmem.estimator.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a report goes to, and how much of it is shown."""

    outputs: tuple[Output, ...]
    """Forms and their places."""
    device: Device | None = None
    """The GPU to hold the step against."""
    depth: int | None = None
    """`--depth`."""
    everything: bool = False
    """`--all`."""
    quiet: bool = False
    """`--quiet`."""
    no_color: bool = False
    """`--no-color`."""
    written: Sequence[Path] = ()
    """Files that were written already, to be told."""


def deliver(trace: Trace, measurement: Measurement, to: Delivery) -> None:
    """Write every report that was asked for; files first, so that a closed pipe loses none."""
    from dnnmem.cli.export.files import write_atomic
    from dnnmem.cli.render.report import View

    result = make_profile(trace, measurement, to.device)
    view = View(depth=to.depth, everything=to.everything)
    for form, path in sorted(to.outputs, key=lambda output: output.path is None):
        if path is not None:
            write_atomic(path, _text(form, result, view))
        elif form == "table":
            _print_table(result, view, no_color=to.no_color)
        else:
            sys.stdout.write(_text(form, result, view))
    sys.stdout.flush()
    if not to.quiet:
        tell_written(to.written, to.outputs)


def tell_written(written: Sequence[Path], outputs: Sequence[Output]) -> None:
    """Name every file on stderr."""
    sys.stderr.writelines(f"wrote {path}\n" for path in (*written, *(o.path for o in outputs if o.path is not None)))


def make_profile(trace: Trace, measurement: Measurement, device: Device | None) -> Profile:
    """The price of a step, with its phases and advice, against `device` or the GPU it was recorded on or for."""
    from dnnmem.cli.render.phases import phase_starts
    from dnnmem.estimator.advice import advise
    from dnnmem.estimator.build import build_profile

    trace, device = against(trace, device)
    result = build_profile(trace, measurement, device)
    if not result.phases:
        result = replace(result, phases=phase_starts(trace, result.timeline))
    if result.peak.reserved_bytes is None:
        return result
    return replace(result, advice=advise(trace, result.peak.reserved_bytes))


def against(trace: Trace, device: Device | None) -> tuple[Trace, Device | None]:
    """The trace and the GPU to hold it against: the one that was asked for, else the one it was recorded on or for."""
    from dnnmem.estimator.cluster import load_devices

    own = trace.origin.gpu
    if device is None:
        return trace, load_devices().get(own) if own else None
    if own in {None, device.name}:
        return trace, device
    note = f"The step was recorded on {own}, and is held against {device.name}: its kernels may need other temporaries."
    origin = replace(trace.origin, gpu=device.name, notes=(*trace.origin.notes, note))
    return replace(trace, origin=origin), device


def _print_table(result: Profile, view: View, *, no_color: bool) -> None:
    from dnnmem.cli.console import is_unicode, make_console
    from dnnmem.cli.render.report import print_report

    print_report(result, make_console(sys.stdout, no_color=no_color), replace(view, unicode=is_unicode(sys.stdout)))


def _text(form: str, result: Profile, view: View) -> str:
    if form == "json":
        from dnnmem.cli.export.profile_json import to_json

        return to_json(result)
    if form == "csv":
        from dnnmem.cli.export.profile_csv import to_csv

        return to_csv(result.layers)
    from dnnmem.cli.render.markdown import to_markdown

    return to_markdown(result, view)
