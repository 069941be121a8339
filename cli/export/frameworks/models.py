"""The part of an exported script that knows the model: how it is built, fed and priced, by the kind of target.

model.py        its hooks, read from the file           torchvision:, timm:    the library's constructor, images
hf:             the configuration by its name, tokens    anything else          an error that says so
"""

from __future__ import annotations

import ast
from typing import Any

from dnnmem.cli.export.frameworks.ask import Ask
from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.profilers.request import Request
from dnnmem.profilers.target import split_target

_LOAD = '''
spec = importlib.util.spec_from_file_location("user_model", {path!r})
user = importlib.util.module_from_spec(spec)
sys.modules["user_model"] = user
spec.loader.exec_module(user)
ARGUMENTS = {arguments!r}


def call(function, **known):
    """`function` with those of the known arguments that it takes."""
    taken = inspect.signature(function).parameters
    return function(**{{name: value for name, value in known.items() if name in taken}})


def make_model():
    """The model of the file."""
    return call(user.make_model, **ARGUMENTS)


def make_batch():
    """A batch of the file."""
    return call(user.make_batch, {sizes}, **ARGUMENTS)'''

_LOSS = """\
    if isinstance(batch, dict):
        output = model(**batch)
    elif isinstance(batch, (tuple, list)):
        output = model(*batch[: -1 if hasattr(user, "make_loss") else None])
    else:
        output = model(batch)
    if hasattr(user, "make_loss"):
        return user.make_loss(output, batch)
    return output["loss"] if isinstance(output, dict) else getattr(output, "loss", output)"""

_VISION = '''
import {library}


def make_model():
    """The architecture, with random weights."""
    return {call}


def make_batch():
    """Images and their classes."""
    return torch.randn({batch}, 3, {side}, {side}), torch.randint(1000, ({batch},))'''

_TOKENS = '''
import transformers


def make_model():
    """The architecture, with random weights."""
    config = {config}
    return transformers.{auto}.from_config(config)


def make_batch():
    """Random tokens, labelled with themselves."""
    tokens = torch.randint(1000, ({batch}, {seq}))
    return {{"input_ids": tokens, "labels": tokens}}'''

_OPTIMIZERS = {"sgd": "SGD", "momentum": "SGD", "adam": "Adam", "adamw": "AdamW", "adafactor": "Adafactor"}


def model_parts(ask: Ask) -> dict[str, Any]:
    """`target`, `file`, `model_code`, `loss_code` and `optimizer_code` of the script's template.

    Raises `UnsupportedError` for a target that no script can be written for, `UsageError` without a batch size.
    """
    request = ask.request
    if request is None:
        raise UsageError("a whole script needs a model", hint="name it: dnnmem export model.py ...")
    kind, name, symbol = split_target(request.target)
    size = ask.plan.batch.micro_batch or request.batch_size
    parts: dict[str, Any] = {"target": request.target, "file": kind == "file"}
    if kind == "file" and not symbol:
        code, loss = _file(request, name, size), _LOSS
    elif size is None:
        raise UsageError(f"{request.target} has no batch size of its own", hint="give --batch 8")
    elif kind in {"torchvision", "timm"}:
        code, loss = _vision(kind, name, request, size), _CLASSES
    elif kind == "hf":
        code, loss = _tokens(name, request, size), "    return model(**batch).loss"
    else:
        raise UnsupportedError(
            f"a script for {request.target} would not know how to feed it",
            hint="write make_model and make_batch into a model.py (dnnmem init), and export that",
        )
    return {**parts, "model_code": code, "loss_code": loss, "optimizer_code": _optimizer(ask, request, kind)}


_CLASSES = """\
    images, labels = batch
    return F.cross_entropy(model(images), labels)"""


def _file(request: Request, path: str, size: int | None) -> str:
    sizes = {"batch_size": size, "seq_len": request.seq_len}
    words = ", ".join(f"{name}={value}" for name, value in sizes.items() if value is not None)
    return _LOAD.format(path=path, arguments=_arguments(request), sizes=words).replace("make_batch, , ", "make_batch, ")


def _vision(kind: str, name: str, request: Request, size: int) -> str:
    arguments = _arguments(request)
    side = arguments.pop("image_size", 224)
    words = "".join(f", {key}={value!r}" for key, value in arguments.items())
    if kind == "timm":
        call = f"timm.create_model({name!r}, pretrained=False{words})"
    else:
        call = f"torchvision.models.get_model({name!r}, weights=None{words})"
    return _VISION.format(library=kind, call=call, batch=size, side=side)


def _tokens(name: str, request: Request, size: int) -> str:
    if request.seq_len is None:
        raise UsageError(f"{request.target} has no sequence length of its own", hint="give --seq 1024")
    arguments = _arguments(request)
    task = arguments.pop("task", "causal-lm")
    autos = {
        "causal-lm": "AutoModelForCausalLM",
        "masked-lm": "AutoModelForMaskedLM",
        "seq2seq": "AutoModelForSeq2SeqLM",
    }
    if task not in autos:
        raise UnsupportedError(f"a script for the task {task} is not written yet", hint="put the model in a model.py")
    words = "".join(f", {key}={value!r}" for key, value in arguments.items())
    known = "/" in name or name.endswith(".json")
    how = f"AutoConfig.from_pretrained({name!r}{words})" if known else f"AutoConfig.for_model({name!r}{words})"
    return _TOKENS.format(config=f"transformers.{how}", auto=autos[task], batch=size, seq=request.seq_len)


def _optimizer(ask: Ask, request: Request, kind: str) -> str:
    chosen = ask.plan.optimizer
    name, _, options = request.optimizer.partition(":")
    if chosen.name is not None:
        name, options = chosen.name, ""
    words = [*filter(None, options.split(",")), *([] if "lr=" in options else ["lr=1e-4"])]
    plain = f"torch.optim.{_OPTIMIZERS.get(name, 'AdamW')}(parameters, {', '.join(words)})"
    lines = [f"    optimizer = {plain}"]
    if kind == "file" and chosen.name is None:
        lines = [
            '    if hasattr(user, "make_optimizer"):',
            "        optimizer = user.make_optimizer(parameters)",
            "    else:",
            f"        optimizer = {plain}",
        ]
    if chosen.kernel is not None:
        flags = f"foreach={chosen.kernel == 'foreach'}, fused={chosen.kernel == 'fused'}"
        lines += ["    for group in optimizer.param_groups:", f"        group.update({flags})"]
    return "\n".join([*lines, "    return optimizer"])


def _arguments(request: Request) -> dict[str, Any]:
    """`--arg` values as Python: numbers, true, false and none, else texts.

    >>> _arguments(Request(target="model.py", args={"width": "64", "bias": "false", "norm": "rms"}))
    {'width': 64, 'bias': False, 'norm': 'rms'}
    """
    return {name: _literal(text) for name, text in request.args.items()}


def _literal(text: str) -> object:
    named: dict[str, object] = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value
