"""The page of a profile: does it fit, what fills the GPU at the peak, when and what then, whose it is, what would help.

>>> [column.head for column in layer_columns(measured=False)][:4]
['layer', '', 'at peak', 'share']
"""

from __future__ import annotations

from collections.abc import Sequence

from dnnmem.cli.render.alive import made, thing
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
    swatch,
    times,
    without_empty,
    word,
)
from dnnmem.cli.render.html.curve import draw, ticks
from dnnmem.cli.render.html.page import render
from dnnmem.cli.render.html.strip import memory_strip
from dnnmem.cli.render.html.treemap import treemap
from dnnmem.cli.render.layers import label
from dnnmem.cli.render.palette import look
from dnnmem.cli.render.rows import Row as Folded
from dnnmem.cli.render.rows import fold_rows
from dnnmem.cli.render.stack import parts, reason, unknown_parts, verdict
from dnnmem.cli.render.text import batch_words
from dnnmem.estimator.alive import held_by_module
from dnnmem.estimator.profile import Layer, Profile
from dnnmem.estimator.trace import Trace
from dnnmem.estimator.units import format_bytes

_MOST = 1500
"""Lines of modules that are not folded; a model of more has the folded ones only."""
_BYTES = ("param", "grad", "optimizer", "activation", "temp")
_HEADS = ("params", "grads", "optimizer", "activations", "temp")


def profile_page(profile: Profile, trace: Trace | None = None, *, depth: int | None = None) -> str:
    """The page; with the step's `trace` it tells what is alive at each moment, and by module and kind.

    Modules deeper than `depth` names are summed into their ancestors; None for no limit.
    """
    curve = draw(profile.timeline, profile.phases, trace)
    held = _held(profile, trace)
    cells, groups = treemap(held)
    versions = ", ".join(f"{name} {version}" for name, version in profile.versions.items())
    where = profile.device + (f" {'as' if profile.device != 'cuda' else 'on'} {profile.gpu}" if profile.gpu else "")
    return render(
        "profile.html",
        title=f"dnnmem: {profile.target}",
        scripts=("table", "curve", "treemap"),
        profile=profile,
        about=" · ".join(filter(None, (batch_words(profile.batch), f"device {where}", versions))),
        verdict=_verdict(profile),
        tiles=_tiles(profile),
        strip=memory_strip(profile),
        stack=_stack(profile),
        alive=_alive(profile),
        curve=curve,
        ticks=ticks(curve.top_bytes) if curve else [],
        cells=cells,
        groups=groups,
        by_kind=trace is not None,
        treemap_kinds=list(dict.fromkeys(cell.kind for cell in cells)),
        layers=_layers(profile, depth),
    )


def _verdict(profile: Profile) -> str:
    return verdict(
        total_bytes=profile.total_bytes,
        usable_bytes=profile.usable_bytes,
        gpu=profile.gpu,
        unknown=unknown_parts(profile),
        is_bound="shapes_bounded" in profile.facts,
    )


def _tiles(profile: Profile) -> list[tuple[str, Cell, str]]:
    """The numbers that people ask for first: name, number, a word on it."""
    peak = profile.peak
    tiles = [("needed at the peak", size(profile.total_bytes), "all known parts")]
    if profile.usable_bytes is not None:
        free = profile.usable_bytes - profile.total_bytes
        tiles.append(("free" if free >= 0 else "missing", size(abs(free)), f"of {format_bytes(profile.usable_bytes)}"))
    tiles.append(("allocated", size(peak.allocated_bytes), "bytes in live tensors"))
    tiles.append(("reserved", size(peak.reserved_bytes), "held by PyTorch's allocator"))
    tiles.append(
        (
            "step time",
            seconds(profile.step_seconds),
            "measured" if profile.step_seconds is not None else f"not measured on {profile.device}",
        )
    )
    work = sum(layer.forward_flops + layer.backward_flops for layer in profile.layers)
    tiles.append(("work", flops(work or None), "FLOP a step"))
    return tiles


def _stack(profile: Profile) -> Table:
    rows = []
    for part in parts(profile):
        why = reason(part.name, profile) if part.nbytes is None else ""
        name = Cell(look(part.name).label, look(part.name).label, "", swatch(part.name))
        rows.append(Row(cells=[name, size(part.nbytes), share(part.share), word(why)]))
    total = [word("total"), size(profile.total_bytes), share(1.0 if profile.total_bytes else None), word("")]
    columns = [Column("part", number=False), Column("bytes"), Column("share"), Column("", number=False)]
    return Table(name="parts", caption="Parts of the memory at the peak", columns=columns, rows=rows, total=total)


def _alive(profile: Profile) -> Table:
    rows = [
        Row(
            cells=[
                Cell(thing(item), thing(item), "", swatch(item.kind)),
                word(look(item.kind).label),
                number(item.count, ",d"),
                size(item.nbytes),
                word(made(item)),
                word(item.source),
            ]
        )
        for item in profile.alive
    ]
    columns = [
        Column("what", number=False),
        Column("kind", number=False),
        Column("tensors"),
        Column("bytes", title="All of them together"),
        Column("shape of one, and its op", number=False),
        Column("line", number=False),
    ]
    rest = profile.peak.allocated_bytes - sum(item.nbytes for item in profile.alive)
    total = [word("everything else"), word(""), word(""), size(rest), word(""), word("")] if rest > 0 else ()
    return Table(name="alive", caption="What is alive at the peak", columns=columns, rows=rows, total=total)


def _held(profile: Profile, trace: Trace | None) -> dict[tuple[str, str], int]:
    """Bytes at the peak by module and kind; by module alone where the step itself is not known."""
    if trace is not None and profile.timeline.peak <= sum(len(op.events) for op in trace.ops):
        return dict(held_by_module(trace, profile.timeline.peak))
    return {(layer.module, "unknown"): layer.peak_bytes for layer in profile.layers}


def layer_columns(*, measured: bool) -> list[Column]:
    """Columns of the table of layers: what they share of the peak first, then what one of them needs."""
    own = "of one module, without what is inside it"
    heads = [Column("layer", number=False), Column("", title="Equal modules on this line")]
    heads += [
        Column("at peak", title="Bytes at the peak, all modules of the line"),
        Column("share", title="Of the peak"),
    ]
    heads += [Column(head, title=f"{head} {own}") for head in _HEADS]
    heads += [Column("fwd FLOP", title=f"forward {own}"), Column("bwd FLOP", title=f"backward {own}")]
    if measured:
        heads += [Column("fwd", title="seconds in forward"), Column("bwd", title="seconds in backward")]
    return [*heads, Column("type", number=False)]


def _layers(profile: Profile, depth: int | None) -> Table:
    folded = fold_rows(profile.layers, depth=depth)
    each = fold_rows(profile.layers, depth=depth, fold=False)
    differ = len(folded) < len(each) <= _MOST
    total = sum(row.peak_bytes for row in folded)
    measured = any(row.one.forward_seconds is not None for row in folded)
    rows = [Row(cells=_layer(row, total, measured=measured)) for row in folded]
    if differ:
        rows += [Row(cells=_layer(row, total, measured=measured), hidden=True) for row in each]
    columns, rows = without_empty(layer_columns(measured=measured), rows)
    return Table(
        name="layers",
        caption="Layers: what each module needs for itself",
        columns=columns,
        rows=rows,
        unfold="every module on its own line" if differ else "",
    )


def _layer(row: Folded, total: int, *, measured: bool) -> Sequence[Cell]:
    one: Layer = row.one
    cells = [word(label(row), one.source), times(row.count)]
    cells += [blank(size(row.peak_bytes)), share(row.peak_bytes / total if total else None)]
    cells += [blank(size(getattr(one, f"{name}_bytes"))) for name in _BYTES]
    cells += [blank(flops(one.forward_flops)), blank(flops(one.backward_flops))]
    if measured:
        cells += [seconds(one.forward_seconds), seconds(one.backward_seconds)]
    return [*cells, word(one.type, one.source)]
