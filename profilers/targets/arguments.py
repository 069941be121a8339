"""Which function takes which `--arg name=value`, and as what value: by parameter name, converted by its annotation.

    --arg width=64 --arg tied=true          make_model(width: int, tied=False)  ->  width=64, tied=True
                                            make_batch(batch_size, vocab=1000)  ->  (nothing)

>>> def make_model(width: int, tied=False): ...
>>> def make_batch(batch_size, vocab=1000): ...
>>> distribute({"width": "64", "tied": "true"}, {"make_model": make_model, "make_batch": make_batch})
{'make_model': {'width': 64, 'tied': True}, 'make_batch': {}}
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dnnmem.estimator.errors import UsageError

RESERVED = {"batch_size": "--batch", "seq_len": "--seq"}
"""Parameters that have an option of their own."""

_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False, "none": None}
_WRITTEN = {bool, int, float, str, tuple, list, set, dict}


def parameters(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Parameters that can be given by name, annotations resolved where that is possible."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some C functions have no signature
        return {}
    hints = _hints(function)
    named = [p for p in found if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    return {p.name: p.replace(annotation=hints.get(p.name, p.annotation)) for p in named}


def takes_any(function: Callable[..., object]) -> bool:
    """Whether the function has `**kwargs`, or no signature to ask."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(p.kind is p.VAR_KEYWORD for p in found)


def distribute(args: Mapping[str, str], functions: Mapping[str, Callable[..., object]]) -> dict[str, dict[str, object]]:
    """Converted keyword arguments for each function, by its name; raises `UsageError` for a name that none takes."""
    given: dict[str, dict[str, object]] = {label: {} for label in functions}
    accepted = {label: parameters(function) for label, function in functions.items()}
    for name, text in args.items():
        if name in RESERVED:
            raise UsageError(f"--arg {name}={text} has an option of its own", hint=f"give {RESERVED[name]} {text}")
        takers = [label for label in functions if name in accepted[label]]
        takers = takers or [label for label, function in functions.items() if takes_any(function)]
        if not takers:
            raise unknown_argument(name, accepted)
        for label in takers:
            given[label][name] = convert(name, text, accepted[label].get(name), label)
    return given


def unknown_argument(name: str, accepted: Mapping[str, Iterable[str]], option: str = "--arg") -> UsageError:
    """The error for a name that none of the functions takes; `accepted` lists what each does take."""
    lists = {label: [n for n in names if n not in RESERVED] for label, names in accepted.items()}
    told = "; ".join(f"{label} takes {', '.join(names) or 'none'}" for label, names in lists.items())
    return UsageError(
        f"{option} {name} is not known: {told}",
        hint=near(name, [n for names in lists.values() for n in names]) or "leave it out",
    )


def near(name: str, names: Iterable[str]) -> str:
    """A question that offers the nearest names, or nothing.

    >>> near("widht", ["width", "depth"])
    'did you mean width?'
    """
    found = difflib.get_close_matches(name, list(names), n=4, cutoff=0.6)
    return f"did you mean {', '.join(found)}?" if found else ""


def convert(name: str, text: str, parameter: inspect.Parameter | None, label: str, option: str = "--arg") -> object:
    """The value of `--arg name=text` for a parameter of the function `label`; `UsageError` if it cannot be one."""
    wanted: Any = None
    if parameter is not None and parameter.annotation is not parameter.empty:
        wanted = parameter.annotation
    elif parameter is not None and parameter.default is not parameter.empty and parameter.default is not None:
        wanted = type(parameter.default)
    try:
        return _as_type(text, wanted)
    except (ValueError, SyntaxError) as error:
        kind = getattr(wanted, "__name__", None) or str(wanted)
        raise UsageError(f"{option} {name}={text}: {label} wants {kind}", hint=f"give {name} as {kind}") from error


def literal(text: str) -> object:
    """A value as Python writes it, true/false/none in any case, or else the text itself.

    >>> literal("3"), literal("true"), literal("(1, 2)"), literal("gelu")
    (3, True, (1, 2), 'gelu')
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value


def _as_type(text: str, wanted: Any) -> object:  # an annotation can be anything
    origin = typing.get_origin(wanted)
    if origin in {typing.Union, types.UnionType}:
        return _as_union(text, typing.get_args(wanted))
    if origin is typing.Literal:
        return _choice(text, typing.get_args(wanted))
    container = origin or wanted
    if container in {tuple, list, set, dict}:
        return _as_container(text, container)
    if getattr(wanted, "__module__", "") == "torch" and getattr(wanted, "__name__", "") == "dtype":
        return as_dtype(text)
    simple: dict[Any, Callable[[str], object]] = {bool: _as_bool, int: int, float: float, str: str}
    return simple.get(wanted, literal)(text)


def as_dtype(text: str) -> object:
    """The torch dtype of a name such as `bfloat16`, `fp32` or `torch.half`; raises ValueError for others."""
    import torch

    short = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    name = text.strip().removeprefix("torch.").lower()
    dtype = getattr(torch, short.get(name, name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(text)  # noqa: TRY004  # the same
    return dtype


def _as_union(text: str, members: tuple[Any, ...]) -> object:
    if type(None) in members and text.lower() == "none":
        return None
    written = [m for m in members if m in _WRITTEN or typing.get_origin(m) is not None]  # not torch.Tensor, say
    ordered = sorted(written or (m for m in members if m is not type(None)), key=lambda m: m is str)
    for member in ordered:
        with contextlib.suppress(ValueError, SyntaxError):
            return _as_type(text, member)
    raise ValueError(text)


def _as_container(text: str, container: Callable[[Any], object]) -> object:
    value = literal(text)
    if not isinstance(value, (tuple, list, set, dict)):
        raise ValueError(text)  # noqa: TRY004  # the text is at fault, which every converter says this way
    return container(value)


def _choice(text: str, choices: tuple[Any, ...]) -> object:
    for choice in choices:
        if str(choice) == text:
            return choice
    raise ValueError(text)


def _as_bool(text: str) -> bool:
    value = {**_WORDS, "1": True, "0": False}.get(text.lower())
    if value is None:
        raise ValueError(text)
    return value


def _hints(function: Callable[..., object]) -> dict[str, Any]:
    source = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]  # read, not called
    try:
        return typing.get_type_hints(source)
    except Exception:  # noqa: BLE001  # annotations are the user's code: names that do not resolve are no hint
        return {}
