"""The page of one plan's price: does it fit, how fast and how sure, what the step waits for, when each lane works."""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.cli.render.estimate import WORDS, fold_layers, memory_words, speed_words
from dnnmem.cli.render.html.cells import (
    Cell,
    Column,
    Row,
    Table,
    blank,
    flops,
    number,
    seconds,
    share,
    size,
    times,
    word,
)
from dnnmem.cli.render.html.curve import draw, ticks
from dnnmem.cli.render.html.lanes import PHASES, lanes
from dnnmem.cli.render.html.page import render
from dnnmem.cli.render.html.strip import Strip, strip
from dnnmem.cli.render.html.treemap import treemap
from dnnmem.cli.render.palette import look
from dnnmem.cli.render.phases import phase_starts
from dnnmem.cli.render.stack import percent
from dnnmem.cli.render.text import batch_words
from dnnmem.estimator.alive import held_by_module
from dnnmem.estimator.estimate import Estimate
from dnnmem.estimator.local_step import LocalStep
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import settings
from dnnmem.estimator.profile import PARTS
from dnnmem.estimator.simulate import Timing
from dnnmem.estimator.step_time import LayerTime
from dnnmem.estimator.timeline import Timeline, timeline
from dnnmem.estimator.trace import Op
from dnnmem.estimator.units import format_bytes, format_seconds

BOUNDS = {
    "compute": "param",
    "memory": "activation",
    "communication": "comm",
    "bubble": "fragmentation",
    "host": "context",
}
"""Colours of what bounds a step."""


def estimate_page(
    found: Estimate, layers: Sequence[LayerTime], step: LocalStep, timed: tuple[Sequence[Op], Timing]
) -> str:
    """The page; `timed` is what `time_ops` says of `step`."""
    local, recorded = step.local, step.recorded
    line = timeline(local)
    # With pipeline stages, what one of them holds of the micro-batches in flight is not the timeline of one.
    curve = draw(line, phase_starts(local, line), local) if found.plan.mesh.pp == 1 else None
    cells, groups = treemap(held_by_module(local, line.peak)) if curve else ([], [])
    return render(
        "estimate.html",
        title=f"dnnmem: {recorded.origin.target} on {found.cluster.name}",
        scripts=("table", "curve", "treemap"),
        found=found,
        target=recorded.origin.target,
        about=" · ".join(filter(None, (batch_words(recorded.batch), found.cluster.name, plan_words(found.plan)))),
        memory=memory_words(found),
        speed=speed_words(found),
        tiles=estimate_tiles(found),
        strip=_memory(found, line) if curve else None,
        bounds=bound_strip(found),
        shares=shares(found),
        classes=_classes(found),
        lanes=lanes(*timed),
        lane_seconds=timed[1].seconds,
        phases=[(kind, phase.value) for phase, kind in PHASES.items()],
        layers=_layers(layers),
        curve=curve,
        ticks=ticks(curve.top_bytes) if curve else [],
        cells=cells,
        groups=groups,
        treemap_kinds=list(dict.fromkeys(cell.kind for cell in cells)),
    )


def estimate_tiles(found: Estimate) -> list[tuple[str, Cell, str]]:
    """The numbers that people ask for first: name, number, a word on it."""
    low, high = (format_seconds(value) for value in found.interval_seconds)
    tiles = [("step time", seconds(found.step_seconds), f"nine of ten: {low} to {high}")]
    each = found.per_second(found.tokens) if found.tokens else None
    if each:
        tiles.append(("tokens a second", number(each, ",.0f"), f"{found.tokens:,} a step"))
    else:
        tiles.append(("samples a second", number(found.per_second(found.samples)), f"{found.samples:,} a step"))
    tiles.append(("MFU", Cell("-", None, "not known") if found.mfu is None else share(found.mfu), "of the GPUs' flops"))
    tiles.append(("memory of a GPU", size(total_bytes(found)), "reserved, and the CUDA context"))
    price = found.usd_per_billion_tokens or found.usd_per_step
    unit = "USD a billion tokens" if found.usd_per_billion_tokens else "USD a step"
    tiles.append(("price", price_cell(price), unit))
    tiles.append(("work", flops(found.model_flops), "FLOP a step, all GPUs"))
    return tiles


def plan_words(plan: Plan) -> str:
    """The choices of a plan."""
    return "plan: " + (" ".join(settings(plan)) or "the plain step")


def price_cell(price: tuple[float, float] | None) -> Cell:
    """A price from low to high."""
    if price is None:
        return Cell("-", None, "not known")
    low, high = price
    form = ",.0f" if high >= 100 else ",.3g"
    words = format(low, form) if low == high else f"{low:{form}} to {high:{form}}"
    return Cell(words, low, f"{low:,.6g} to {high:,.6g} USD")


def total_bytes(found: Estimate) -> int | None:
    """What the worst GPU needs; None where it is not predicted."""
    return None if found.peak_reserved_bytes is None else found.peak_reserved_bytes + (found.context_bytes or 0)


def bound_strip(found: Estimate) -> Strip:
    """What the step waits for, as pieces of it."""
    items = [(name, value) for name, value in found.breakdown.items() if value]
    return strip(
        [(BOUNDS[name], name, value, format_seconds(value)) for name, value in items],
        whole=sum(value for _, value in items),
        label="What the step waits for: " + ", ".join(f"{name} {format_seconds(value)}" for name, value in items),
    )


def shares(found: Estimate, name: str = "bounds") -> Table:
    """The same as a table."""
    whole = found.step_seconds
    rows = [
        Row(
            cells=[
                word(bound, kind=BOUNDS[bound]),
                seconds(value),
                share(value / whole if whole else None),
                word(WORDS[bound]),
            ]
        )
        for bound, value in found.breakdown.items()
    ]
    columns = [Column("waits for", number=False), Column("seconds"), Column("share"), Column("", number=False)]
    total = [word("step"), seconds(whole), word(""), word("")]
    return Table(name=name, caption="What the step waits for", columns=columns, rows=rows, total=total)


def _classes(found: Estimate) -> Table:
    whole = sum(found.classes.values())
    rows = [
        Row(cells=[word(name.replace("_", " ")), seconds(value), share(value / whole)])
        for name, value in sorted(found.classes.items(), key=lambda item: -item[1])
        if value
    ]
    columns = [Column("kind of work", number=False), Column("seconds"), Column("share")]
    return Table(name="classes", caption="Busy seconds by kind of work", columns=columns, rows=rows)


def _layers(layers: Sequence[LayerTime]) -> Table:
    total = sum(_sum(layer) for layer in layers)
    folded = fold_layers(layers)
    rows = [Row(cells=_layer(label, group, total)) for label, group in folded]
    each = len(folded) < len(layers) <= 1500
    if each:
        rows += [
            Row(cells=_layer(".".join(layer.module) or "<model>", [layer], total), hidden=True) for layer in layers
        ]
    columns = [Column("layer", number=False), Column("", title="Equal modules on this line"), Column("share")]
    columns += [Column(name, title=f"Busy seconds in {name}") for name in ("forward", "backward", "step")]
    unfold = "every module on its own line" if each else ""
    return Table(name="layers", caption="Layers, one micro-batch", columns=columns, rows=rows, unfold=unfold)


def _layer(label: str, group: Sequence[LayerTime], total: float) -> list[Cell]:
    mine = sum(_sum(layer) for layer in group)
    sums = [sum(getattr(layer, f"{name}_seconds") for layer in group) for name in ("forward", "backward", "step")]
    return [word(label), times(len(group)), share(mine / total if total else None), *(blank(seconds(s)) for s in sums)]


def _sum(layer: LayerTime) -> float:
    return layer.forward_seconds + layer.backward_seconds + layer.step_seconds


def _memory(found: Estimate, line: Timeline) -> Strip | None:
    """The worst GPU's memory by kind at the peak, against what there is."""
    total, usable = total_bytes(found), found.cluster.device.usable_bytes
    if total is None or found.peak_reserved_bytes is None:
        return None
    sizes = {kind.value: int(values[line.peak]) for kind, values in line.kinds.items()}
    sizes["fragmentation"] = max(found.peak_reserved_bytes - sum(sizes.values()), 0)
    sizes["context"] = found.context_bytes or 0
    items = [(name, look(name).label, sizes[name], format_bytes(sizes[name])) for name in PARTS if sizes.get(name)]
    return strip(
        items,
        whole=max(total, usable) * 1.02,
        label="Memory of a GPU at the peak: " + ", ".join(f"{name} {words}" for _, name, _, words in items),
        mark=usable,
        mark_label=f"{format_bytes(usable)} usable, {percent(total / usable)} of it taken",
    )
