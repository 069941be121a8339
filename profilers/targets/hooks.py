"""How a `model.py` becomes a target: functions of well-known names, or one symbol and `--input`.

    make_model(...)                            builds the model                                required
    make_batch(batch_size, ...)                builds one batch; may take seq_len              required, or --input
    make_loss(output, batch)                   where the model does not return its loss        optional
    make_optimizer(parameters)                 where --optimizer is not enough                 optional
    train_step(model, batch, optimizer)        where the loop is not the plain one             optional

`--arg name=value` goes to make_model and make_batch by parameter name. Each is called through a guard, so that an
exception in it is told with the user's lines alone; make_loss and train_step are not: the device tells about its step.

>>> def make_batch(images): ...
>>> _check_make_batch("model.py", make_batch)
Traceback (most recent call last):
dnnmem.estimator.errors.UsageError: make_batch(images) in model.py does not take batch_size
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dnnmem.estimator.errors import ModelError, UsageError
from dnnmem.profilers.request import Request
from dnnmem.profilers.step import Target, describe, plain_step
from dnnmem.profilers.targets.arguments import distribute, parameters, takes_any
from dnnmem.profilers.targets.inputs import check_inputs, make_inputs, parse_input, with_batch_dimension
from dnnmem.profilers.targets.load import guarded
from dnnmem.profilers.targets.optimizers import optimizer_of

EXAMPLE = """\
a model.py has at least these (`dnnmem init` writes a commented one):

    def make_model():
        return torch.nn.Linear(64, 10)

    def make_batch(batch_size):
        return torch.randn(batch_size, 64), torch.randint(10, (batch_size,))"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """The user's functions, as found."""

    label: str
    """File or module they come from, for messages."""
    make_model: Callable[..., Any]
    """Builds the model."""
    model_label: str = "make_model"
    """What the user calls it."""
    make_batch: Callable[..., Any] | None = None
    """Builds a batch, or None if `--input` describes it."""
    make_loss: Callable[..., Any] | None = None
    """Loss of an output, if the user wrote one."""
    make_optimizer: Callable[..., Any] | None = None
    """The user's optimizer."""
    train_step: Callable[..., object] | None = None
    """The user's own step."""
    files: tuple[str, ...] = ()
    """Files and folders of the user's code."""


def find_hooks(label: str, module: ModuleType, files: tuple[str, ...], model: Callable[..., Any], named: str) -> Hooks:
    """The hooks of a module beside `model`; `UsageError` for one that is no function or takes the wrong things."""
    found = {name: _hook(label, module, name) for name in ("make_batch", "make_loss", "make_optimizer", "train_step")}
    if found["make_batch"] is not None:
        _check_make_batch(label, found["make_batch"])
    for name, count, shape in (
        ("make_loss", 2, "output, batch"),
        ("make_optimizer", 1, "parameters"),
        ("train_step", 3, "model, batch, optimizer"),
    ):
        _check_count(label, name, found[name], count, shape)
    return Hooks(label=label, make_model=model, model_label=named, files=files, **found)


def hooks_target(request: Request, hooks: Hooks) -> Target:
    """The target of a request and the functions that it named; raises `UsageError` where the two do not agree."""
    if request.inputs:
        make_batch, model_args, batch = _from_inputs(request, hooks)
    else:
        make_batch, model_args, batch = _from_make_batch(request, hooks)

    def make_model() -> nn.Module:
        model = guarded(hooks.model_label, hooks.make_model, hooks.files)(**model_args)
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"{hooks.model_label} returned {describe(model)}; it must return a torch.nn.Module", hint=EXAMPLE
            )
        return model

    def rescale(batch_size: int, seq_len: int | None) -> Target:
        seq = request.seq_len if seq_len is None else seq_len
        return hooks_target(replace(request, batch_size=batch_size, seq_len=seq, inputs=_scalable(request)), hooks)

    return Target(
        name=request.target,
        make_model=make_model,
        make_batch=make_batch,
        make_optimizer=_optimizer_maker(request, hooks),
        train_step=hooks.train_step or plain_step(hooks.make_loss),
        batch=batch,
        rescale=rescale,
        user_files=hooks.files,
    )


def _from_make_batch(
    request: Request, hooks: Hooks
) -> tuple[Callable[[], Any], dict[str, object], dict[str, int | str]]:
    if hooks.make_batch is None:
        raise UsageError(
            f"{hooks.label} has no make_batch(batch_size), and no --input is given; shapes are not guessed",
            hint=EXAMPLE,
        )
    given = distribute(request.args, {hooks.model_label: hooks.make_model, "make_batch": hooks.make_batch})
    sizes = _sizes(request, hooks.make_batch)
    model_args = given[hooks.model_label]
    if request.seq_len is not None and "seq_len" in parameters(hooks.make_model):
        model_args["seq_len"] = request.seq_len
    elif request.seq_len is not None and "seq_len" not in sizes:
        raise UsageError(
            f"--seq {request.seq_len} is given, but make_batch in {hooks.label} does not take seq_len",
            hint="write make_batch(batch_size, seq_len), or leave --seq out",
        )
    batch_args = {**given["make_batch"], **{k: v for k, v in sizes.items() if _takes(hooks.make_batch, k)}}
    _check_complete(hooks.make_model, model_args, hooks.model_label)
    _check_complete(hooks.make_batch, batch_args, "make_batch")
    call = guarded("make_batch", hooks.make_batch, hooks.files)

    def make_batch() -> Any:  # a batch is what the model takes
        batch = call(**batch_args)
        if hooks.train_step is None and not isinstance(batch, (torch.Tensor, dict, tuple, list)):
            hint = "return a tensor, or a tuple or dict of tensors: one batch, e.g. next(iter(loader))"
            raise ModelError(f"make_batch returned {describe(batch)}, which is no batch", hint=hint)
        return batch

    return make_batch, model_args, {**sizes, **_told(request, given)}


def _from_inputs(request: Request, hooks: Hooks) -> tuple[Callable[[], Any], dict[str, object], dict[str, int | str]]:
    specs = tuple(parse_input(text) for text in request.inputs)
    batch_size = check_inputs(specs, batch_size=request.batch_size, seq_len=request.seq_len)
    given = distribute(request.args, {hooks.model_label: hooks.make_model})
    _check_complete(hooks.make_model, given[hooks.model_label], hooks.model_label)
    sizes: dict[str, int | str] = {"batch_size": batch_size}
    if request.seq_len is not None:
        sizes["seq_len"] = request.seq_len

    def make_batch() -> object:
        return make_inputs(specs, batch_size=batch_size, seq_len=request.seq_len)

    inputs: dict[str, int | str] = {"inputs": " ".join(request.inputs)}
    return make_batch, given[hooks.model_label], {**sizes, **_told(request, given), **inputs}


def _sizes(request: Request, make_batch: Callable[..., Any]) -> dict[str, int | str]:
    accepted = parameters(make_batch)
    sizes: dict[str, int | str] = {}
    for name, value, option, example in (
        ("batch_size", request.batch_size, "--batch", 8),
        ("seq_len", request.seq_len, "--seq", 1024),
    ):
        parameter = accepted.get(name)
        default = None if parameter is None or parameter.default is parameter.empty else parameter.default
        if value is None and default is None and (parameter is not None or name == "batch_size"):
            raise UsageError(
                f"make_batch has no default for {name}, and {option} is not given", hint=f"give {option} {example}"
            )
        chosen = default if value is None else value
        if chosen is not None and _takes(make_batch, name):
            sizes[name] = chosen
    return sizes


def _optimizer_maker(request: Request, hooks: Hooks) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    if hooks.make_optimizer is None:
        return optimizer_of(request.optimizer)
    call = guarded("make_optimizer", hooks.make_optimizer, hooks.files)

    def make_optimizer(trained: Iterable[nn.Parameter]) -> Optimizer:
        optimizer = call(trained)
        if hooks.train_step is None and not callable(getattr(optimizer, "step", None)):
            raise ModelError(
                f"make_optimizer returned {describe(optimizer)}; it must return an optimizer",
                hint="return torch.optim.AdamW(parameters)",
            )
        return optimizer  # type: ignore[no-any-return]  # the user's function has no types to check

    return make_optimizer


def _scalable(request: Request) -> tuple[str, ...]:
    if not request.inputs:
        return ()
    specs = [parse_input(text) for text in request.inputs]
    first = specs[0].shape[0]
    scaled = with_batch_dimension(specs, first) if isinstance(first, int) else specs
    return tuple(spec.text() for spec in scaled)


def _hook(label: str, module: ModuleType, name: str) -> Callable[..., Any] | None:
    hook = getattr(module, name, None)
    if hook is not None and not callable(hook):
        raise UsageError(f"{name} in {label} is {describe(hook)}, not a function", hint=EXAMPLE)
    return hook


def _check_make_batch(label: str, make_batch: Callable[..., Any]) -> None:
    if not _takes(make_batch, "batch_size"):
        raise UsageError(
            f"make_batch({', '.join(parameters(make_batch))}) in {label} does not take batch_size",
            hint="memory at other batch sizes is found by making other batches:\n\n"
            "    def make_batch(batch_size):\n"
            "        return torch.randn(batch_size, 64), torch.randint(10, (batch_size,))",
        )


def _check_count(label: str, name: str, hook: Callable[..., Any] | None, count: int, shape: str) -> None:
    if hook is None:
        return
    try:
        inspect.signature(hook).bind(*range(count))
    except TypeError as error:
        raise UsageError(
            f"{name} in {label} is called with {count} arguments ({shape}), and does not take them: {error}",
            hint=f"write def {name}({shape}):",
        ) from error
    except ValueError:
        return  # no signature to ask


def _check_complete(function: Callable[..., Any], given: dict[str, object], label: str) -> None:
    accepted = parameters(function)
    missing = [n for n, p in accepted.items() if p.default is p.empty and n not in given]
    if missing:
        raise UsageError(
            f"{label} needs {', '.join(missing)}, which has no default",
            hint=" ".join(f"--seq {1024}" if n == "seq_len" else f"--arg {n}=..." for n in missing),
        )


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in parameters(function) or takes_any(function)


def _told(request: Request, given: dict[str, dict[str, object]]) -> dict[str, int | str]:
    values = {name: value for args in given.values() for name, value in args.items()}
    return {n: v if type(v := values[n]) is int else text for n, text in request.args.items()}
