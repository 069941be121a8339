"""`dnnmem profile TARGET`: where every byte and second of one training step goes.

options, environment, file -> Job -> child process (or a saved trace) -> Trace, Measurement -> Profile -> reports
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dnnmem.cli.commands import options as o

if TYPE_CHECKING:
    from dnnmem.cli.commands.job import Job
    from dnnmem.cli.render.report import View
    from dnnmem.estimator.device import Device
    from dnnmem.estimator.profile import Measurement, Profile
    from dnnmem.estimator.trace import Trace


def profile(
    target: o.Target,
    *,
    batch: o.Batch = None,
    seq: o.Seq = None,
    input_: o.Inputs = None,
    arg: o.Args = None,
    optimizer: o.Optimizer = None,
    device: o.Device = None,
    gpu: o.Gpu = None,
    steps: o.Steps = None,
    seed: o.Seed = None,
    repeats: o.Repeats = None,
    timeout: o.Timeout = None,
    format_: o.Format = None,
    json: o.Json = None,
    csv: o.Csv = None,
    save: o.Save = None,
    depth: o.Depth = None,
    everything: o.All = False,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Show where every byte and every second of one training step goes.

    Defaults of the options may stand in [tool.dnnmem] of pyproject.toml or in dnnmem.toml; DNNMEM_BATCH and the like in
    the environment go before the file, and the command line before both.
    """
    from dnnmem.cli.commands.job import prepare
    from dnnmem.cli.commands.outputs import check_outputs

    typed = {
        "batch": batch, "seq": seq, "optimizer": optimizer, "device": device, "gpu": gpu, "steps": steps,
        "seed": seed, "repeats": repeats, "timeout": timeout, "format": format_, "depth": depth,
    }  # fmt: skip
    job = prepare(
        target,
        typed,
        os.environ,
        folder=Path.cwd(),
        inputs=input_ or (),
        args=arg or (),
        json=json,
        csv=csv,
        save=save,
        everything=everything,
    )
    check_outputs(job.outputs, job.save)
    trace, measurement = _step(job, quiet=quiet, no_color=no_color)
    _deliver(job, trace, measurement, quiet=quiet, no_color=no_color)


def _step(job: Job, *, quiet: bool, no_color: bool) -> tuple[Trace, Measurement]:
    """Record the step in a child process, or load it."""
    if job.request is None:
        from dnnmem.estimator.trace_file import load_trace

        return load_trace(job.target)
    from dnnmem.cli.cache import cache_folder
    from dnnmem.cli.progress import listening
    from dnnmem.profilers.run import run

    with listening(sys.stderr, quiet=quiet, no_color=no_color) as listeners:
        return run(
            job.request,
            timeout=job.timeout_seconds,
            gpu=job.device,
            cache=cache_folder(os.environ),
            on_output=listeners.on_output,
            on_progress=listeners.on_progress,
        )


def _deliver(job: Job, trace: Trace, measurement: Measurement, *, quiet: bool, no_color: bool) -> None:
    """Save the trace and write every report that was asked for; files first, so that a closed pipe loses none."""
    from dnnmem.cli.export.files import write_atomic
    from dnnmem.cli.render.phases import phase_starts
    from dnnmem.cli.render.report import View
    from dnnmem.estimator.build import build_profile
    from dnnmem.estimator.trace_file import save_trace

    if job.save is not None:
        save_trace(trace, measurement, job.save)
    trace, device = against(trace, job.device)
    result = build_profile(trace, measurement, device)
    if not result.phases:
        result = replace(result, phases=phase_starts(trace, result.timeline))
    view = View(depth=job.depth, everything=job.everything)
    for form, path in sorted(job.outputs, key=lambda output: output.path is None):
        if path is not None:
            write_atomic(path, _text(form, result, view))
        elif form == "table":
            _print_table(result, view, no_color=no_color)
        else:
            sys.stdout.write(_text(form, result, view))
    sys.stdout.flush()
    if not quiet:
        written = [job.save, *(path for _, path in job.outputs)]
        sys.stderr.writelines(f"wrote {path}\n" for path in written if path is not None)


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
