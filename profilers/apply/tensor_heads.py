"""Attention with a rank's heads: numbers of heads and widths that a module keeps are divided, where it keeps them.

    attention.num_heads 32, tp 4     ->  8        its queries are a quarter: views of 8 heads fit
    attention.config.heads (a copy)  ->  8        of a tuple or dataclass of numbers; a shared config object stays
    view(B, T, 32 * 128) in the code ->  an error that says so

Only modules whose own layers are split by columns are changed, and only numbers under names that mean heads, or that
equal what one of those layers makes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from dnnmem.estimator.errors import UnsupportedError

HEADS = frozenset({
    "num_heads", "n_head", "n_heads", "heads", "nhead", "num_attention_heads", "num_key_value_heads", "num_kv_heads",
    "n_kv_heads", "kv_heads", "n_kv_head", "n_local_heads", "n_local_kv_heads", "n_head_kv",
})  # fmt: skip
"""Names of numbers of heads in published models."""
WIDTHS = frozenset(
    {"split_size", "all_head_size", "inner_dim", "n_embd", "embed_dim", "kv_dim", "q_dim", "hidden_size"}
)
"""Names of what all heads make."""


def divide_heads(model: nn.Module, columns: Mapping[str, Sequence[int]], tp: int) -> None:
    """Let modules that hold `columns` count a rank's heads. Raises `UnsupportedError` where `tp` does not divide."""
    made: dict[str, set[int]] = {}
    for name, parts in columns.items():
        made.setdefault(name.rpartition(".")[0], set()).update(parts)
    for name, widths in made.items():
        module = model.get_submodule(name)
        _divide(name, module, widths, tp)
        module.forward = partial(_reshaping, module.forward, name, tp)


def _reshaping(forward: Callable[..., Any], name: str, tp: int, *args: Any, **kwargs: Any) -> Any:
    """Its forward pass; where it asks for a shape of all heads, an error that says so."""
    try:
        return forward(*args, **kwargs)
    except RuntimeError as error:
        if "invalid for input of size" not in str(error):
            raise
        raise UnsupportedError(
            f"{name} reshapes to sizes that its code computes of the whole width: {error}; under tp {tp} a rank has "
            f"1 / {tp} of its heads",
            hint="let the code say -1 for the number of heads, or keep that number in an attribute such as num_heads",
        ) from error


def _divide(name: str, module: nn.Module, widths: set[int], tp: int) -> None:
    for key, value in list(vars(module).items()):
        if _counts(key, value, widths):
            setattr(module, key, _part(f"{name}.{key}", value, tp))
        elif isinstance(value, tuple) and hasattr(value, "_asdict"):
            inner: Any = value
            setattr(module, key, inner._replace(**_parts(name, inner._asdict(), widths, tp)))
        elif dataclasses.is_dataclass(value) and not hasattr(value, "to_dict"):  # HF's modules keep their own numbers
            mine = copy.copy(value)
            for field, part in _parts(name, vars(value), widths, tp).items():
                object.__setattr__(mine, field, part)
            setattr(module, key, mine)


def _parts(name: str, values: Mapping[str, Any], widths: set[int], tp: int) -> dict[str, int]:
    return {
        key: _part(f"{name}: {key}", value, tp)
        for key, value in values.items()
        if key in HEADS and _counts(key, value, widths)
    }


def _counts(key: str, value: Any, widths: set[int]) -> bool:
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return key in HEADS or (key in WIDTHS and value in widths)


def _part(name: str, value: int, tp: int) -> int:
    if value % tp:
        raise UnsupportedError(
            f"{name} is {value}; {value} % tp {tp} = {value % tp}, but heads must divide evenly",
            hint="choose a tp that divides the heads",
        )
    return value // tp
