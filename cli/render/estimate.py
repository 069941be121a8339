"""What one plan costs, for people: does it fit, how fast is it and how sure is that, what bounds it, where time goes.

blocks.0.mlp  1.2 ms  2.4 ms        blocks.0-11.mlp  x12  14.4 ms  28.8 ms        equal blocks are one line
blocks.1.mlp  1.2 ms  2.4 ms   ->
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dnnmem.cli.render.rich_text import plain
from dnnmem.cli.render.stack import percent
from dnnmem.cli.render.text import batch_words
from dnnmem.estimator.alive import fold_paths
from dnnmem.estimator.estimate import Estimate
from dnnmem.estimator.plan_text import settings
from dnnmem.estimator.step_time import LayerTime
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.units import format_bytes, format_flops, format_number, format_seconds

WORDS = {
    "compute": "arithmetic of the GPU",
    "memory": "bandwidth of its memory",
    "communication": "waiting for other GPUs",
    "bubble": "waiting for other pipeline stages",
    "host": "waiting for the CPU to issue ops",
}
"""What each bound means."""


def print_estimate(trace: Trace, found: Estimate, layers: Sequence[LayerTime], console: Console, *, top: int) -> None:
    """Write the estimate to `console`; `top` lines of layers, 0 for all."""
    for section in _sections(trace, found, layers, top):
        if console.no_color:
            console.print(plain(section, width=console.width), soft_wrap=True)
        else:
            console.print(section)


def _sections(trace: Trace, found: Estimate, layers: Sequence[LayerTime], top: int) -> Iterator[RenderableType]:
    yield Text(f"{trace.origin.target}  {batch_words(trace.batch)}")
    yield Text(f"{found.cluster.name}; plan: {' '.join(settings(found.plan)) or 'the plain step'}")
    yield Group(Text(), Text(memory_words(found), _style(found)), Text(speed_words(found), "bold"), Text())
    yield _facts(found)
    yield Group(Text(), Text("What the step waits for", "bold"), _shares(found))
    yield Group(Text(), Text("Busy, by kind of work (lanes overlap)", "bold"), _classes(found))
    yield Group(Text(), Text("Layers, one micro-batch", "bold"), _layers(layers, top))
    yield from (Text(f"note: {note}") for note in found.notes)


def memory_words(found: Estimate) -> str:
    """One sentence on memory."""
    if found.peak_reserved_bytes is None:
        return "Memory is not predicted for this plan"
    usable = found.cluster.device.usable_bytes
    total = found.peak_reserved_bytes + (found.context_bytes or 0)
    verdict = "FITS" if total <= usable else "DOES NOT FIT"
    return (
        f"{verdict}: {format_bytes(total)} of the {format_bytes(usable)} usable on {found.cluster.device.name} "
        f"({percent(total / usable)}), {format_bytes(found.peak_reserved_bytes)} reserved"
    )


def speed_words(found: Estimate) -> str:
    """One sentence on time."""
    low, high = found.interval_seconds
    return (
        f"{format_seconds(found.step_seconds)} a step (nine of ten between {format_seconds(low)} and "
        f"{format_seconds(high)}), {found.bound}-bound"
    )


def _style(found: Estimate) -> str:
    return "bold" if found.fits is None else "bold green" if found.fits else "bold red"


def _facts(found: Estimate) -> Table:
    table = _table("", "")
    table.columns[0].justify = "left"
    rate = found.per_second(found.samples)
    each_second = f", {format_number(rate)} a second" if rate else ""
    rows = [("samples", f"{found.samples:,} a step{each_second}")]
    rows += _effective_batch(found)
    if found.tokens:
        each = found.tokens / found.step_seconds
        rows.append(("tokens", f"{each:,.0f} a second, {each / found.plan.mesh.world_size:,.0f} on each GPU"))
    rows.append(("model flops", f"{format_flops(found.model_flops)}FLOP a step" + _mfu(found)))
    if found.usd_per_step is not None:
        low, high = found.usd_per_billion_tokens or found.usd_per_step
        rows.append(("price", f"{low:,.2f} to {high:,.2f} USD a {'billion tokens' if found.tokens else 'step'}"))
    if found.joules_bound:
        rows.append(("energy", f"at most {found.joules_bound / 3600:,.3g} Wh a step (board power of the GPUs)"))
    for row in rows:
        table.add_row(*row)
    return table


def _effective_batch(found: Estimate) -> list[tuple[str, str]]:
    """How many samples an update sees, and what that asks of the learning rate (Goyal et al. 2017, You et al. 2020)."""
    times = found.plan.mesh.data_ranks * found.plan.batch.accumulation
    if times == 1:
        return []
    root = f"{times**0.5:.3g}"
    words = f"{times} micro-batches, learning rate x {times} (SGD, LARS) or x {root} (Adam, LAMB), warmed up"
    return [("batch", f"effective {found.samples:,}: {words}")]


def _mfu(found: Estimate) -> str:
    return "" if found.mfu is None else f", {percent(found.mfu)} of what the GPUs could do (MFU)"


def _shares(found: Estimate) -> Table:
    table = _table("", "seconds", "share", "")
    for name, seconds in found.breakdown.items():
        share = seconds / found.step_seconds if found.step_seconds else 0.0
        table.add_row(name, format_seconds(seconds), percent(share), WORDS[name])
    return table


def _classes(found: Estimate) -> Table:
    table = _table("", "seconds")
    for name, seconds in sorted(found.classes.items(), key=lambda item: -item[1]):
        if seconds:
            table.add_row(name.replace("_", " "), format_seconds(seconds))
    return table


def _layers(layers: Sequence[LayerTime], top: int) -> Table:
    table = _table("layer", "", "forward", "backward", "step")
    rows = fold_layers(layers)
    for label, group in rows[: top or None]:
        sums = [sum(getattr(layer, f"{name}_seconds") for layer in group) for name in ("forward", "backward", "step")]
        table.add_row(
            label, f"x{len(group)}" if len(group) > 1 else "", *(format_seconds(s) if s else "" for s in sums)
        )
    if top and len(rows) > top:
        table.add_row(f"and {len(rows) - top} more; --top 0 shows them", "", "", "", "")
    return table


def fold_layers(layers: Sequence[LayerTime]) -> list[tuple[str, list[LayerTime]]]:
    """Layers that differ in an index only as one line, with its name; those that take longest first."""
    groups: dict[object, list[LayerTime]] = defaultdict(list)
    for layer in layers:
        groups[tuple("*" if part.isdecimal() else part for part in layer.module)].append(layer)
    rows = sorted(groups.values(), key=lambda group: -sum(_total(layer) for layer in group))
    return [(fold_paths([layer.module for layer in group]) or "<model>", group) for group in rows]


def _total(layer: LayerTime) -> float:
    return layer.forward_seconds + layer.backward_seconds + layer.step_seconds


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=any(names))
    for index, name in enumerate(names):
        table.add_column(name, justify="right" if index and name else "left")
    return table
