"""Image classifiers of torchvision and timm: their architecture, the image size they are published with, cross entropy.

    torchvision:resnet50                 random weights, images (batch, 3, 224, 224), labels (batch,) of 1000 classes
    torchvision:vit_b_16 --arg image_size=384 --arg num_classes=10
    timm:vit_base_patch16_224 --arg img_size=384 --arg drop_path_rate=0.1

The size comes from the library's own metadata of published weights (the smallest, where there are several); nothing is
downloaded. What was chosen stands in `Target.batch` and `Target.notes`.

>>> image_side("224", "image_size")
224
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dnnmem.estimator.errors import ModelError, UnsupportedError, UsageError
from dnnmem.profilers.request import Request
from dnnmem.profilers.step import Target, describe, plain_step
from dnnmem.profilers.targets.arguments import convert, near, parameters, unknown_argument
from dnnmem.profilers.targets.load import guarded
from dnnmem.profilers.targets.optimizers import optimizer_of

AUXILIARY_WEIGHT = {"InceptionOutputs": 0.4, "GoogLeNetOutputs": 0.3}
"""Weight of the auxiliary classifiers' losses, by torchvision's output class: GoogLeNet as its paper (arXiv 1409.4842,
section 5), Inception v3 as PyTorch's fine-tuning tutorial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A published image classifier."""

    build: Callable[..., nn.Module]
    """The library's function; takes the model's arguments by name."""
    accepted: Mapping[str, Any]
    """Model arguments that may be given, each with its `inspect.Parameter`."""
    size_name: str
    """What the library calls the image size."""
    side: int
    """Published image height and width, in pixels."""
    channels: int = 3
    """Published image channels."""
    classes: int = 1000
    """Published number of classes."""


def torchvision_target(request: Request, name: str) -> Target:
    """The target `torchvision:name`; raises `UsageError` for unknown names, `UnsupportedError` for other tasks."""
    models = needed("torchvision.models", "vision")
    if name not in models.list_models():
        raise UsageError(
            f"torchvision has no model {name!r}", hint=near(name, models.list_models()) or _LIST["torchvision"]
        )
    builder = models.get_model_builder(name)
    if builder.__module__.count(".") != 2:  # torchvision.models.detection.faster_rcnn, .quantization.resnet, ...
        raise UnsupportedError(
            f"torchvision:{name} is a {builder.__module__.split('.')[2]} model; "
            "only image classifiers have a standard loss",
            hint="write a model.py with make_model, make_batch and make_loss (`dnnmem init`)",
        )
    cls, accepted = _model_arguments(builder)
    sizes = [w.transforms().crop_size[0] for w in models.get_model_weights(name)]
    fixed = {"init_weights": False} if "init_weights" in parameters(cls) else {}  # scipy's slow draw, and a warning
    architecture = Architecture(
        build=lambda **given: builder(weights=None, **{**fixed, **given}),
        accepted=accepted,
        size_name="image_size",
        side=min(sizes),
    )
    return _image_target(request, architecture)


def timm_target(request: Request, name: str) -> Target:
    """The target `timm:name`; raises `UsageError` for unknown names and those that would need a download."""
    timm = needed("timm", "vision")
    if ":" in name or "/" in name or not timm.is_model(name.partition(".")[0]):
        close = near(name.rpartition("/")[2], timm.list_models())
        raise UsageError(f"timm has no model {name!r}", hint=close or _LIST["timm"])
    try:
        published = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UsageError(f"timm:{name}: {error}", hint=f"leave the tag out: timm:{name.partition('.')[0]}") from error
    entry = timm.models.model_entrypoint(name)
    channels, side, _ = published.input_size if published else (3, 0, 0)
    if not side and "img_size" not in request.args:
        raise UsageError(f"timm:{name} has no published image size", hint="give --arg img_size=224")
    architecture = Architecture(
        build=lambda **given: timm.create_model(name, pretrained=False, **given),
        accepted=_model_arguments(entry)[1],
        size_name="img_size",
        side=side,
        channels=channels,
        classes=published.num_classes if published else 1000,
    )
    return _image_target(request, architecture)


def needed(module: str, extra: str) -> ModuleType:
    """An optional library; raises `UsageError` with its `pip install` line where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name != library:
            raise
        raise UsageError(f"{library} is not installed", hint=f'pip install "dnnmem[{extra}]"') from error


def image_side(text: str, name: str) -> int:
    """Pixels of one side of a square image from its option; raises `UsageError` for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--arg {name}={text} is no number of pixels", hint=f"give --arg {name}=224")
    return int(text)


def image_loss(output: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:  # per model
    """Cross entropy over the classes, with the auxiliary classifiers' where the model has some."""
    labels = batch[1]
    weight = AUXILIARY_WEIGHT.get(type(output).__name__)
    if weight is not None:
        main, *others = output if type(output).__name__ == "InceptionOutputs" else (output.logits, *output[1:])
        loss = F.cross_entropy(main, labels)
        for other in (o for o in others if o is not None):
            loss = loss + weight * F.cross_entropy(other, labels)
        return loss
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        raise ModelError(
            f"the model returns {describe(output)}, which are no class scores (batch, classes)",
            hint="write a model.py with make_model, make_batch and make_loss (`dnnmem init`)",
        )
    return F.cross_entropy(output, labels)


def _image_target(request: Request, architecture: Architecture) -> Target:
    size_name, accepted = architecture.size_name, architecture.accepted
    for name in request.args:
        if name not in accepted and name != size_name:
            raise unknown_argument(name, {request.target: sorted({size_name, *accepted})})
    label = request.target
    given = {n: convert(n, text, accepted.get(n), label) for n, text in request.args.items() if n != size_name}
    side = architecture.side
    if size_name in request.args:
        side = image_side(request.args[size_name], size_name)
        given |= {size_name: side} if size_name in accepted else {}
    channels: Any = given.get("in_chans", architecture.channels)
    classes: Any = given.get("num_classes", architecture.classes)
    if classes < 1:
        raise UsageError(f"{label} is published without classes, so it has no loss", hint="give --arg num_classes=1000")
    batch_size = request.batch_size or 1

    def make_model() -> nn.Module:
        return guarded(label, architecture.build, ())(**given).train()

    def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(batch_size, channels, side, side), torch.randint(0, classes, (batch_size,))

    shape = f"{channels}x{side}x{side}"
    return Target(
        name=label,
        make_model=make_model,
        make_batch=make_batch,
        make_optimizer=optimizer_of(request.optimizer),
        train_step=plain_step(image_loss),
        batch={"batch_size": batch_size, **request.args, "image": shape, "classes": classes},
        rescale=lambda batch_size, _seq_len: _image_target(replace(request, batch_size=batch_size), architecture),
        notes=(f"images of {shape} as {label} is published for, or as given; cross entropy over {classes} classes",),
    )


def _model_arguments(builder: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class that a builder returns, and those of its parameters that the builder leaves to the caller."""
    cls = typing.get_type_hints(builder).get("return", builder)
    cls = cls if isinstance(cls, type) and issubclass(cls, nn.Module) else builder
    hidden = {"self", "pretrained", "weights", "progress", "init_weights", "device", "dtype", "cfg"}
    own = {n: p for n, p in parameters(cls).items() if p.default is not p.empty or n == "image_size"}
    return cls, {n: p for n, p in {**parameters(builder), **own}.items() if n not in hidden}


_LIST = {
    "torchvision": 'list them with `python -c "import torchvision; print(torchvision.models.list_models())"`',
    "timm": 'list them with `python -c "import timm; print(timm.list_models())"`',
}
