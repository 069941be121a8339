"""What a Hugging Face model is trained for, and a batch of it: inputs and labels with the shapes of that task.

    causal-lm               input_ids (B, S), labels (B, S) the same tokens; no padding mask, as with packed sequences
    masked-lm               the same, labels -100 except at every seventh position
    seq2seq                 input_ids (B, S), labels (B, T), T = S unless --arg target_len=T
    image-classification    pixel_values (B, C, H, W), labels (B,)

The task is the one of the configuration's `architectures`, else the only one that transformers has for the model type
(seq2seq before image classification before masked before causal language models); `--arg task=...` chooses another.

>>> list(TASKS)
['seq2seq', 'image-classification', 'masked-lm', 'causal-lm']
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dnnmem.estimator.errors import UnsupportedError, UsageError
from dnnmem.profilers.request import Request
from dnnmem.profilers.targets.vision import image_side

TASKS = {
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
}
"""Task -> the table of transformers that names its model classes, in order of preference."""

TASK_ARGUMENTS = ("task", "target_len", "image_size")
"""`--arg` names that are about the batch; `image_size` is the configuration's where it has one."""

MASKED_EVERY = 7
"""One token in seven is predicted: 14 %, near the 15 % of BERT (arXiv 1810.04805), and never none."""

IGNORED = -100
"""Label that cross entropy leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model class and the batch that it is trained with."""

    name: str
    """One of `TASKS`."""
    model_class: Any
    """Class of transformers."""
    make_batch: Callable[[], dict[str, torch.Tensor]]
    """Builds one batch."""
    note: str
    """What the batch is, in a sentence."""


def choose_task(request: Request, config: Any) -> Task:  # transformers has no types
    """The task of a configuration with its batch; `UsageError` if sizes are missing, `UnsupportedError` for others."""
    name, class_name = _name(request, config)
    import transformers

    model_class = getattr(transformers, class_name)
    make = _image_batch if name == "image-classification" else _token_batch
    make_batch, note = make(request, config, name)
    return Task(name=name, model_class=model_class, make_batch=make_batch, note=note)


def _name(request: Request, config: Any) -> tuple[str, str]:  # transformers has no types
    from transformers.models.auto import modeling_auto

    found: dict[str, tuple[str, ...]] = {}
    for task, table in TASKS.items():
        classes = getattr(modeling_auto, table).get(config.model_type)
        if classes:
            found[task] = (classes,) if isinstance(classes, str) else tuple(classes)
    label = request.target
    if not found:
        raise UnsupportedError(
            f"{label} is of type {config.model_type}, which transformers has for none of {', '.join(TASKS)}",
            hint="write a model.py with make_model and make_batch (`dnnmem init`)",
        )
    wanted = request.args.get("task")
    if wanted is not None:
        if wanted not in found:
            raise UsageError(
                f"--arg task={wanted}: {label} has {', '.join(found)}", hint=f"give task={next(iter(found))}"
            )
        return wanted, found[wanted][0]
    for architecture in config.architectures or ():
        for task, classes in found.items():
            if architecture in classes:
                return task, architecture
    if config.architectures:
        raise UnsupportedError(
            f"{label} is a {config.architectures[0]}, which is trained for none of {', '.join(TASKS)}",
            hint=f"train it for another with --arg task={next(iter(found))}, or write a model.py (`dnnmem init`)",
        )
    task = next(iter(found))
    return task, found[task][0]


def _token_batch(
    request: Request,
    config: Any,
    task: str,  # transformers has no types
) -> tuple[Callable[[], dict[str, torch.Tensor]], str]:
    label, seq = request.target, request.seq_len
    limit = getattr(config, "max_position_embeddings", None)
    if "image_size" in request.args:
        raise UsageError(f"--arg image_size is given, but {label} takes tokens", hint="leave it out")
    if seq is None:
        raise UsageError(
            f"{label} takes sequences, and --seq is not given", hint=f"give --seq {min(limit or 1024, 1024)}"
        )
    if isinstance(limit, int) and 0 < limit < seq:
        raise UsageError(
            f"--seq is {seq}, but {label} has max_position_embeddings {limit}",
            hint=f"give --seq {limit} or less, or --arg max_position_embeddings={seq}",
        )
    if task != "seq2seq" and "target_len" in request.args:
        raise UsageError(f"--arg target_len is given, but {label} is a {task} model", hint="leave it out")
    text = request.args.get("target_len", str(seq))
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--arg target_len={text} is no number of tokens", hint="give --arg target_len=128")
    target, size = int(text), (request.batch_size or 1, seq)
    vocab = config.get_text_config().vocab_size
    if task == "seq2seq" and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id or 0  # default T5Config lacks what every T5 has

    def make_batch() -> dict[str, torch.Tensor]:
        ids = torch.randint(0, vocab, size)
        if task == "seq2seq":
            return {"input_ids": ids, "labels": torch.randint(0, vocab, (size[0], target))}
        if task == "causal-lm":
            return {"input_ids": ids, "labels": ids.clone()}
        return {"input_ids": ids, "labels": torch.where(torch.arange(seq) % MASKED_EVERY == 0, ids, IGNORED)}

    lengths = f"{seq} tokens, {target} to predict" if task == "seq2seq" else f"{seq} tokens"
    return make_batch, f"{task} batch of {lengths} each, without a padding mask"


def _image_batch(
    request: Request,
    config: Any,
    _task: str,  # transformers has no types
) -> tuple[Callable[[], dict[str, torch.Tensor]], str]:
    label = request.target
    if request.seq_len is not None:
        raise UsageError(f"--seq is given, but {label} takes images", hint="leave --seq out")
    size = getattr(config, "image_size", None)
    if size is None and "image_size" not in request.args:
        raise UsageError(f"the configuration of {label} has no image_size", hint="give --arg image_size=224")
    if "image_size" in request.args:
        size = image_side(request.args["image_size"], "image_size")
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    channels, labels, batch_size = getattr(config, "num_channels", 3), config.num_labels, request.batch_size or 1

    def make_batch() -> dict[str, torch.Tensor]:
        # a single label is a regression target to transformers
        target = torch.randn(batch_size) if labels == 1 else torch.randint(0, labels, (batch_size,))
        return {"pixel_values": torch.randn(batch_size, channels, height, width), "labels": target}

    return make_batch, f"images of {channels}x{height}x{width}, {labels} labels"
