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
    from dnnmem.estimator.timeline import Timeline
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


def deliver(trace: Trace, measurement: Measurement, to: Delivery, curve: Timeline | None = None) -> None:
    """Write every report that was asked for; files first, so that a closed pipe loses none.

    `curve` is the step's timeline where that was measured.
    """
    from dnnmem.cli.export.files import write_atomic
    from dnnmem.cli.render.report import View

    result = make_profile(trace, measurement, to.device, curve)
    view = View(depth=to.depth, everything=to.everything)
    for form, path in sorted(to.outputs, key=lambda output: output.path is None):
        if path is not None:
            write_atomic(path, _text(form, result, view, trace))
        elif form == "table":
            _print_table(result, view, no_color=to.no_color)
        else:
            sys.stdout.write(_text(form, result, view, trace))
    sys.stdout.flush()
    if not to.quiet:
        tell_written(to.written, to.outputs)


def tell_written(written: Sequence[Path], outputs: Sequence[Output]) -> None:
    """Name every file on stderr."""
    sys.stderr.writelines(f"wrote {path}\n" for path in (*written, *(o.path for o in outputs if o.path is not None)))


def make_profile(
    trace: Trace, measurement: Measurement, device: Device | None, curve: Timeline | None = None
) -> Profile:
    """The price of a step, with its phases and advice, against `device` or the GPU it was recorded on or for.

    `curve` is its timeline where that was measured.
    """
    from dnnmem.cli.render.phases import phase_starts
    from dnnmem.estimator.advice import MOST_EVENTS, advise
    from dnnmem.estimator.build import build_profile
    from dnnmem.estimator.replay import with_reserved

    trace, device = against(trace, device)
    result = build_profile(trace, measurement, device)
    if curve is not None:
        result = replace(result, timeline=curve)
    if not result.phases:
        result = replace(result, phases=phase_starts(trace, result.timeline))
    if result.peak.reserved_bytes is None or len(result.timeline.allocated) > MOST_EVENTS:
        return result
    curve = result.timeline if result.timeline.reserved is not None else with_reserved(trace, result.timeline)
    reserved = curve.reserved
    return replace(result, timeline=curve, advice=advise(trace, None if reserved is None else int(reserved.max())))


def against(trace: Trace, device: Device | None) -> tuple[Trace, Device | None]:
    """The trace and the GPU to hold it against: the one that was asked for, else the one it was recorded on or for."""
    from dnnmem.estimator.devices import load_devices

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


def _text(form: str, result: Profile, view: View, trace: Trace) -> str:
    if form == "json":
        from dnnmem.cli.export.profile_json import to_json

        return to_json(result)
    if form == "csv":
        from dnnmem.cli.export.profile_csv import to_csv

        return to_csv(result.layers)
    if form == "html":
        from dnnmem.cli.render.html.profile import profile_page

        return profile_page(result, trace, depth=view.depth)
    from dnnmem.cli.render.markdown import to_markdown

    return to_markdown(result, view)
