"""What the user named, as a `Target` that a device can build and run: one resolver for every kind of name.

    model.py                       functions of well-known names      targets/hooks.py
    model.py:Net, package.mod:Net  a class, a function, a model       targets/symbol.py
    torchvision:resnet50           a published architecture           targets/vision.py
    timm:vit_base_patch16_224      the same                           targets/vision.py
    hf:gpt2, hf:config.json        a configuration, never weights     targets/hf.py

Nothing here reaches the network, and no weights are read. torch is imported only when a target is resolved.

>>> split_target("model.py:Net"), split_target("hf:gpt2"), split_target("package.module:Net")
(('file', 'model.py', 'Net'), ('hf', 'gpt2', ''), ('module', 'package.module', 'Net'))
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.targets.arguments import near
from dnnmem.profilers.targets.load import load_file, load_module, user_files

if TYPE_CHECKING:
    from dnnmem.profilers.request import Request
    from dnnmem.profilers.step import Target

LIBRARIES = ("torchvision", "timm", "hf")
"""Prefixes of published architectures."""

_TOKENS, _SEQUENCES, _IMAGES = 1 << 13, 8, 32
"""What a GPU takes of a published architecture where nobody says: so many tokens, if a sequence's length is known, as
torchtitan's configuration of an 8B model has it."""

FORMS = "a target is model.py, model.py:symbol, package.module:symbol, torchvision:NAME, timm:NAME or hf:NAME"


def resolve(request: Request) -> Target:
    """The target that a request names.

    Raises `UsageError` for a name, hook, option or argument that does not fit, `ModelError` if the user's code fails
    while it is imported, `UnsupportedError` for architectures that need more than one batch and one loss.
    """
    kind, name, symbol = split_target(request.target)
    if kind in LIBRARIES:
        return _resolve_library(kind, name, request)
    from dnnmem.profilers.targets.hooks import hooks_target
    from dnnmem.profilers.targets.symbol import module_hooks, symbol_hooks

    module = load_file(name) if kind == "file" else load_module(name)
    files = user_files(module)
    hooks = symbol_hooks(name, module, symbol, files) if symbol else module_hooks(name, module, files)
    return hooks_target(request, hooks)


def with_batch(request: Request) -> Request:
    """`request` with a batch that is usual for one GPU, if it has none and its target has none of its own.

    >>> from dnnmem.profilers.request import Request
    >>> with_batch(Request(target="hf:llama", seq_len=2048)).batch_size
    4
    """
    kind = split_target(request.target)[0]
    if request.batch_size is not None or kind not in LIBRARIES:
        return request
    sequences = max(_TOKENS // request.seq_len, 1) if request.seq_len else _SEQUENCES
    return replace(request, batch_size=sequences if kind == "hf" else _IMAGES)


def split_target(target: str) -> tuple[str, str, str]:
    """Kind (`file`, `module` or a library), name and symbol of a target; raises `UsageError` for what is none."""
    text = target.strip()
    if not text:
        raise UsageError("the target is empty", hint=FORMS)
    if text.endswith((".trace.json.gz", ".trace.json")):
        raise UsageError(f"{text} is a saved trace, which has no model to run", hint="read it with `dnnmem profile`")
    head, colon, tail = text.partition(":")
    if colon and head.lower() in LIBRARIES:
        if not tail:
            raise UsageError(f"{text} names no model", hint=f"write {head}:NAME, such as {_EXAMPLES[head.lower()]}")
        return head.lower(), tail, ""
    path, colon, symbol = text.rpartition(":")
    if not colon or len(path) < 2:  # a drive letter is no file
        path, symbol = text, ""
    if path.endswith(".py") or os.path.sep in path or "/" in path or os.path.exists(path):  # noqa: PTH110  # a text
        return "file", path, _symbol(text, symbol) if colon and path != text else ""
    if not symbol:
        raise UsageError(f"{text} is no file, and names no symbol of a module", hint=_guess(text))
    return "module", path, _symbol(text, symbol)


_EXAMPLES = {"torchvision": "torchvision:resnet50", "timm": "timm:vit_base_patch16_224", "hf": "hf:gpt2"}


def _symbol(text: str, symbol: str) -> str:
    if not all(part.isidentifier() for part in symbol.split(".")):
        raise UsageError(f"{text!r}: {symbol!r} is no name of a class or function", hint="write model.py:Net")
    return symbol


def _guess(text: str) -> str:
    if os.path.exists(f"{text}.py"):  # noqa: PTH110  # a text
        return f"did you mean {text}.py?"
    scripts = [name for name in os.listdir() if name.endswith(".py")]  # noqa: PTH208  # names are what is compared
    known = {example.partition(":")[2]: example for example in _EXAMPLES.values()}
    return near(text, scripts) or (f"did you mean {known[text]}?" if text in known else FORMS)


def _resolve_library(kind: str, name: str, request: Request) -> Target:
    if request.inputs:
        raise UsageError(
            f"--input is given, but {request.target} makes its own inputs",
            hint="leave --input out; sizes are set by --batch, --seq and --arg",
        )
    if request.batch_size is None:
        raise UsageError(
            f"{request.target} has no batch size of its own, and --batch is not given", hint="give --batch 8"
        )
    if kind == "hf":
        from dnnmem.profilers.targets.hf import hf_target

        return hf_target(request, name)
    from dnnmem.profilers.targets.vision import timm_target, torchvision_target

    if request.seq_len is not None:
        raise UsageError(f"--seq is given, but {request.target} takes images", hint="leave --seq out")
    return torchvision_target(request, name) if kind == "torchvision" else timm_target(request, name)
