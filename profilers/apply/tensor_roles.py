"""Which modules of a model tensor parallelism splits, and how: by HF's own plan, else by names and shapes (*assumed*).

    a block of width d    q, k, v: d -> h * e        columns      out: h * e -> d        rows
                          gate, up: d -> f           columns      down: f -> d           rows
    beside the blocks     tokens: vocabulary x d     a table      head: d -> vocabulary  columns

Linear layers are read in definition order: those that take the stream are split by columns up to one that gives it
back, which is split by rows. Layers that make several things at once (queries, keys and values) are split within each.
What finds no partner stays whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dnnmem.profilers.apply.loss import find_head
from dnnmem.profilers.found_blocks import blocks_of

ROWS = frozenset({
    "o_proj", "out_proj", "c_proj", "proj", "dense", "wo", "w2", "fc2", "down_proj", "down", "out", "o", "output",
    "dense_4h_to_h", "linear2", "proj_out",
})  # fmt: skip
"""Names that published models give to layers which go back to the stream, where shapes do not tell."""
PACKED = frozenset({"qkv", "c_attn", "Wqkv", "qkv_proj", "in_proj"})
"""Names of layers that make queries, keys and values one after the other."""
GATED = frozenset({"gate_up_proj", "gate_and_up_proj", "w13"})
"""Names of layers that make a gate and what goes through it."""
_COLUMN, _ROW = frozenset({"colwise"}), frozenset({"rowwise"})
_BESIDE = frozenset({"colwise_gather_output", "colwise_rep", "replicated_with_grad_allreduce", "sequence_parallel"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Modules by name."""

    columns: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Split by what they make; how many outputs each thing has that they make."""
    rows: tuple[str, ...] = ()
    """Split by what they take."""
    tables: tuple[str, ...] = ()
    """Embeddings of tokens, split along the vocabulary."""
    head: str = ""
    """The layer that makes logits, split along the vocabulary; empty = there is none, or it stays whole."""
    assumed: bool = True
    """False = the model says so itself."""


def find_roles(model: nn.Module) -> Roles:
    """The roles of a model's modules; `rows` is empty where nothing can be split."""
    columns: dict[str, tuple[int, ...]] = {}
    rows: list[str] = []
    known = _shipped(model)
    blocks = blocks_of(model)
    for name, block in blocks:
        linear = {f"{name}.{inner}": m for inner, m in block.named_modules() if sizes(m)}
        found = _by_plan(linear, known) or _by_shape(linear)
        columns.update(found[0])
        rows += found[1]
    if not rows:
        return Roles()
    tables = tuple(name for name, m in _outside(model, [name for name, _ in blocks]) if _is_table(m))
    head = find_head(model)
    inside = tuple(f"{name}." for name, _ in blocks)
    named = next((name for name, m in model.named_modules() if m is head), "")
    return Roles(
        columns=columns, rows=tuple(rows), tables=tables[:1],
        head="" if f"{named}.".startswith(inside) else named, assumed=not known,
    )  # fmt: skip


def sizes(module: nn.Module) -> tuple[int, int] | None:
    """What a linear layer takes and makes; None for any other module."""
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers': the matrix is (in, out)
        weight: Any = module.weight
        return int(weight.shape[0]), int(weight.shape[1])
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else None


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


def _outside(model: nn.Module, blocks: list[str]) -> list[tuple[str, nn.Module]]:
    inside = tuple(f"{name}." for name in blocks)
    return [(name, m) for name, m in model.named_modules() if not f"{name}.".startswith(inside)]


def _shipped(model: nn.Module) -> dict[str, str]:
    """HF's plan, layer -> style, where it has no style that we do not know; else empty."""
    plan = getattr(getattr(model, "config", None), "base_model_tp_plan", None)
    if not isinstance(plan, dict) or not set(plan.values()) <= _COLUMN | _ROW | _BESIDE:
        return {}
    gathered = any(plan[name].startswith("colwise_") for name in plan if "*" in name)
    return {} if gathered else plan


def _by_plan(linear: dict[str, nn.Module], plan: dict[str, str]) -> tuple[dict[str, tuple[int, ...]], list[str]] | None:
    def style(name: str) -> str:
        generic = re.sub(r"\.\d+\.", ".*.", name)
        return next((plan[known] for known in plan if generic == known or generic.endswith(f".{known}")), "")

    columns: dict[str, tuple[int, ...]] = {name: (_made(m),) for name, m in linear.items() if style(name) in _COLUMN}
    rows = [name for name in linear if style(name) in _ROW]
    return (columns, rows) if columns and rows else None


def _made(module: nn.Module) -> int:
    found = sizes(module)
    return found[1] if found else 0


def _by_shape(linear: dict[str, nn.Module]) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Runs of columns up to a layer of rows that takes what one of them makes."""
    columns: dict[str, tuple[int, ...]] = {}
    rows: list[str] = []
    waiting: list[str] = []
    width = next((found[0] for m in linear.values() if (found := sizes(m))), 0)
    for name, module in linear.items():
        takes, makes = sizes(module) or (0, 0)
        back = makes == width and bool(waiting) and (takes != width or name.rpartition(".")[2] in ROWS)
        if not back:
            waiting += [name] if takes == width else []
            continue
        parts = {one: _parts(one, _made(linear[one]), takes) for one in waiting}
        parents = {one.rpartition(".")[0] for one, made in parts.items() if takes in made}
        if parents:
            columns.update({one: made for one, made in parts.items() if one.rpartition(".")[0] in parents})
            rows.append(name)
        waiting = []
    return columns, rows


def _parts(name: str, makes: int, wanted: int) -> tuple[int, ...]:
    """The things that a layer makes one after the other, where `wanted` features go on."""
    leaf = name.rpartition(".")[2]
    if leaf in GATED and makes == 2 * wanted:
        return wanted, wanted
    if leaf in PACKED and makes > wanted and (makes - wanted) % 2 == 0:
        return wanted, (makes - wanted) // 2, (makes - wanted) // 2
    return (makes,)
