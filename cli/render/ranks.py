"""The report of `dnnmem run` in the terminal: does it fit, what each rank and step needed, where it ran out.

header      the command, the GPU, the versions
verdict     does it fit
ranks       a line for each rank and GPU
steps       peaks of each step; ranks that are alike share a table
failure     torch's message, the line, the module
layers      the recorded steps, as `dnnmem profile` shows them; again by groups of ranks
notes       what was assumed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.report import View, sections
from dnnmem.cli.render.rich_text import plain
from dnnmem.cli.render.stack import stack
from dnnmem.cli.render.text import place
from dnnmem.estimator.units import format_bytes

if TYPE_CHECKING:
    from dnnmem.cli.commands.run_record import Profiles
    from dnnmem.profilers.ranks import ScriptRun
    from dnnmem.profilers.script_result import DeviceMemory, OutOfMemory, RankResult, StepPeak

_BEFORE_THE_PEAK = 2
"""Sections of a profile's report that this one has in its own words: header, verdict with the stack of parts."""


def print_ranks(
    command: Sequence[str],
    run: ScriptRun,
    results: Sequence[RankResult],
    profiles: Profiles,
    *,
    console: Console,
    view: View,
) -> None:
    """Write the whole report to `console`; without colour as plain lines."""
    color = not console.no_color
    for section in _sections(command, run, results, profiles, width=console.width, color=color, view=view):
        if color:
            console.print(section)
        else:
            text = plain(section, width=console.width)
            console.print(text if view.unicode else text.replace("…", "~"), soft_wrap=True)


def _sections(
    command: Sequence[str],
    run: ScriptRun,
    results: Sequence[RankResult],
    profiles: Profiles,
    *,
    width: int,
    color: bool,
    view: View,
) -> Iterator[RenderableType]:
    yield _header(command, run, results)
    yield Group(Text(), _verdict_line(run, results))
    used = [(result, gpu) for result in results for gpu in result.memory]
    if used:
        yield Group(Text(), _table(used))
    if workspaces := _workspaces(results[0].facts):
        yield workspaces
    failed = [result for result in results if result.oom is not None]
    if failed and failed[0].oom is not None:
        yield Group(Text(), Text("Where it ran out of memory", "bold underline"), _failure(failed[0].oom, failed[0]))
    alike: dict[tuple[StepPeak, ...], list[int | None]] = {}
    for result, gpu in used:
        if len(gpu.steps) > 1:
            alike.setdefault(gpu.steps, []).append(result.rank)
    for steps, ranks in alike.items():
        yield Group(Text(), Text(_titled("Steps", ranks, len(alike)), "bold underline"), _steps(steps))
    yield from _layers(profiles, width=width, color=color, view=view)
    notes = list(dict.fromkeys(note for result in results for note in result.notes))
    if notes:
        bullets = Table.grid(padding=(0, 1, 0, 0))
        for note in notes:
            bullets.add_row("-", Text(note))
        yield Group(Text(), Text("The run", "bold underline"), bullets)


def _layers(profiles: Profiles, *, width: int, color: bool, view: View) -> Iterator[RenderableType]:
    """The recorded steps; those that read alike are shown once."""
    alike: dict[str, tuple[list[RenderableType], list[int | None]]] = {}
    for rank, profile in profiles.items():
        parts = stack(profile, width=width, color=color, unicode=view.unicode)
        rest = islice(sections(profile, width=width, color=color, view=view), _BEFORE_THE_PEAK, None)
        shown = [Group(Text(), Text("The last step", "bold underline"), parts), *rest]
        text = "\n".join(plain(section, width=width) for section in shown)
        alike.setdefault(text, (shown, []))[1].append(rank)
    for shown, ranks in alike.values():
        if len(alike) > 1:
            yield Group(Text(), Text(_titled("Layers", ranks, len(alike)), "bold underline"))
        yield from shown


def _titled(title: str, ranks: Sequence[int | None], kinds: int) -> str:
    """`title`, and of which ranks it is where there are several kinds of them."""
    if kinds == 1:
        return title
    return f"{title}, rank{'s' if len(ranks) > 1 else ''} {', '.join(str(rank) for rank in ranks)}"


def _header(command: Sequence[str], run: ScriptRun, results: Sequence[RankResult]) -> Text:
    first = results[0]
    gpus = f"{run.world_size} x {run.gpu.name}" if run.world_size > 1 else run.gpu.name
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    steps = ", ".join(f"{count} of {name}" for name, count in first.optimizers.items())
    end = "ended by dnnmem" if first.stopped else "by its own end" if first.outcome == "ran" else "before it failed"
    done = f"{_count(first.steps, 'training step')} {end}" + (f" ({steps})" if steps else "")
    done += "; kernels compute nothing here: losses that are printed mean nothing"
    return Text("\n").join(
        [Text(" ".join(command), "bold"), Text(f"on virtual {gpus}; {versions}", "dim"), Text(done, "dim")]
    )


def _verdict_line(run: ScriptRun, results: Sequence[RankResult]) -> Text:
    sentence = verdict(run, results)
    word, colon, rest = sentence.partition(":")
    style = {"FITS": "bold green", "DOES NOT FIT": "bold red"}.get(word.partition(",")[0], "bold yellow")
    return Text.assemble((word, style), colon + rest)


def verdict(run: ScriptRun, results: Sequence[RankResult]) -> str:
    """One sentence: does the script fit, by the rank that needs most."""
    place_ = f"{format_bytes(run.gpu.usable_bytes)} of {run.gpu.name}"
    for result in results:
        if result.oom is not None:
            who = "" if result.rank is None else f" rank {result.rank}"
            bound = ", by an upper bound" if "shapes_bounded" in result.facts else ""
            return f"DOES NOT FIT{bound}:{who} runs out of the {place_} in {when(result.oom)}"
    bad = next((result for result in results if result.outcome != "ran"), None)
    if bad is not None:
        return f"NOT KNOWN: the script {'took too long' if bad.outcome == 'timed_out' else 'failed'}"
    gpus = [gpu for result in results for gpu in result.memory]
    if not gpus:
        return "NOT KNOWN: the script put nothing on the GPU"
    most = max(gpus, key=total)
    without = ", without the CUDA context" if most.outside_bytes is None else ""
    free = format_bytes(max(run.gpu.usable_bytes - total(most), 0))
    retries = f", after {_count(most.alloc_retries, 'retry')} of the allocator" if most.alloc_retries else ""
    return f"FITS: {format_bytes(total(most))} of the {place_}, {free} free{without}{retries}"


def total(gpu: DeviceMemory) -> int:
    """Bytes that a GPU must have: what the allocator reserved at most, and what lies outside it."""
    return gpu.reserved_bytes + (gpu.outside_bytes or 0)


def when(oom: OutOfMemory) -> str:
    """The moment of a failed allocation in words."""
    phases = {"setup": "before the first forward", "step": "the optimizer step"}
    return f"step {oom.step}, {phases.get(oom.phase, oom.phase)}"


def _table(used: Sequence[tuple[RankResult, DeviceMemory]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    heads = ["rank"] if any(result.rank is not None for result, _ in used) else []
    for head in [
        *heads,
        "gpu",
        "allocated",
        "reserved",
        "requested",
        "context",
        "NCCL",
        "segments",
        "retries",
        "steps",
    ]:
        table.add_column(head, justify="right", no_wrap=True)
    for result, gpu in used:
        rank = [str(result.rank)] if heads else []
        nccl = gpu.nccl_bytes or 0
        context = "not known" if gpu.outside_bytes is None else format_bytes(gpu.outside_bytes - nccl)
        sizes = [format_bytes(n) for n in (gpu.allocated_bytes, gpu.reserved_bytes, gpu.requested_bytes)]
        counts = [str(n) for n in (gpu.segments, gpu.alloc_retries, result.steps)]
        table.add_row(*rank, str(gpu.device), *sizes, context, format_bytes(nccl) if nccl else "-", *counts)
    return table


def _workspaces(facts: Mapping[str, float | int | str]) -> Text | None:
    """The scratch memory of cuDNN's convolutions and the like, and whose word it is."""
    if "cudnn_asked" not in facts:
        return None
    low, high = (format_bytes(int(facts[name])) for name in ("cudnn_largest_bytes", "cudnn_largest_high_bytes"))
    own = facts["cudnn_asked"] == facts["cudnn"]
    whose = "exact" if own else f"by cuDNN {facts['cudnn_asked']} in place of {facts['cudnn']}: {low} to {high}"
    return Text(f"workspaces of {facts['cudnn_operations']} cuDNN operations: the largest {low}, {whose}", "dim")


def _steps(steps: Sequence[StepPeak]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in ("step", "allocated", "reserved"):
        table.add_column(head, justify="right", no_wrap=True)
    for number, step in enumerate(steps, start=1):
        table.add_row(str(number), format_bytes(step.allocated_bytes), format_bytes(step.reserved_bytes))
    return table


def _failure(oom: OutOfMemory, result: RankResult) -> Text:
    words = Text.assemble("in ", (when(oom), "bold"))
    if oom.module:
        words.append(f", in {place(oom.module)}")
    if oom.source:
        words.append(f"\n{oom.source}", "cyan")
    frames = result.message.splitlines()[:-1] if result.message else []
    for line in frames:
        words.append(f"\n  {line}", "dim")
    asked = f"\n{format_bytes(oom.asked_bytes)} asked for, {format_bytes(oom.free_bytes)} free on the GPU"
    words.append(asked if oom.asked_bytes is not None else "")
    words.append(f"\n{oom.message}" if oom.message else "\nthe script caught the error and kept its words to itself")
    return words


def _count(number: int, noun: str) -> str:
    plural = noun[:-1] + "ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
