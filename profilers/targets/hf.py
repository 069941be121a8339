"""Hugging Face architectures from their configuration alone: never weights, never the network, never remote code.

    hf:gpt2  hf:bert  hf:llama ...      a model type of transformers, with the defaults of its configuration class
    hf:gpt2-medium  hf:meta-llama/Llama-3.1-8B     a well-known model, from the table in hf_configs.json
    hf:path/to/config.json  hf:path/to/folder      any model's config.json
    hf:llama --arg num_hidden_layers=4 --arg task=causal-lm --arg dtype=bfloat16     attributes changed

An id of the Hub that is in none of these is looked up in the local cache of huggingface_hub, and is an error otherwise.

>>> sorted(known_models())[:2]
['FacebookAI/roberta-base', 'FacebookAI/roberta-large']
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dnnmem.estimator.errors import UsageError
from dnnmem.profilers.request import Request
from dnnmem.profilers.step import Target, plain_step
from dnnmem.profilers.targets.arguments import convert, near, unknown_argument
from dnnmem.profilers.targets.hf_tasks import TASK_ARGUMENTS, choose_task
from dnnmem.profilers.targets.load import guarded
from dnnmem.profilers.targets.optimizers import optimizer_of
from dnnmem.profilers.targets.vision import needed

HOW = "give a configuration: hf:path/to/config.json, hf:folder, or a model type such as hf:llama with --arg"

_DTYPES = ("dtype", "torch_dtype")
_EXTRA = {"attn_implementation", "experts_implementation", "num_labels"}
"""What a configuration takes without listing it."""
_NOT_SHOWN = {
    "architectures",
    "id2label",
    "label2id",
    "model_type",
    "transformers_version",
    "return_dict",
    "problem_type",
}
"""What it lists and nobody changes for a profile."""


def hf_target(request: Request, name: str) -> Target:
    """The target `hf:name`; raises `UsageError` for what is no configuration, `UnsupportedError` for other tasks."""
    needed("transformers", "hf").logging.set_verbosity_error()  # its remarks on token ids of shrunk vocabularies
    data, origin = find_config(name)
    config = make_config(request.target, data, request.args)
    task = choose_task(request, config)
    dtype = str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")
    batch: dict[str, int | str] = {"batch_size": request.batch_size or 1}
    if request.seq_len is not None:
        batch["seq_len"] = request.seq_len

    def make_model() -> nn.Module:
        model = guarded(request.target, task.model_class._from_config, ())(config)  # what Auto* calls
        return model.train()  # type: ignore[no-any-return]  # transformers has no types

    def rescale(batch_size: int, seq_len: int | None) -> Target:
        seq = request.seq_len if seq_len is None else seq_len
        return hf_target(replace(request, batch_size=batch_size, seq_len=seq), name)

    return Target(
        name=request.target,
        make_model=make_model,
        make_batch=task.make_batch,
        make_optimizer=optimizer_of(request.optimizer),
        train_step=plain_step(),
        batch={**batch, **request.args, "task": task.name},
        rescale=rescale,
        notes=(origin, f"{task.model_class.__name__} with {dtype} weights, in training mode, use_cache off", task.note),
    )


def find_config(name: str) -> tuple[dict[str, Any], str]:
    """A configuration as data, and a sentence that says where it is from; raises `UsageError` if there is none."""
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if file.is_file() and (file.suffix == ".json" or path.is_dir()):
        return _read(file), f"configuration from {file}"
    if path.suffix == ".json" or name.startswith((".", "/", "~")) or path.is_file():
        reason = "is a folder without config.json" if path.is_dir() else "is no configuration"
        raise UsageError(f"hf:{name} {reason if path.exists() else 'does not exist'}", hint=HOW)
    models = known_models()
    for known, entry in models.items():
        if name.lower() in {known.lower(), known.rpartition("/")[2].lower(), *entry["aliases"]}:
            return dict(entry["config"]), f"configuration of {known} as in {entry['source']}"
    types = needed("transformers", "hf").CONFIG_MAPPING
    if name in types:
        return {"model_type": name}, f"default configuration of {types[name].__name__}"
    cached = _cached(name)
    if cached is not None:
        return _read(cached), f"configuration of {name} from the local cache"
    short = [known.rpartition("/")[2].lower() for known in models]
    close = near(name.rpartition("/")[2].lower(), [*short, *types])
    raise UsageError(
        f"hf:{name} is no file, no model type of transformers and not among the known models; nothing is downloaded",
        hint="\n".join(filter(None, (close, HOW))),
    )


def make_config(label: str, data: Mapping[str, Any], args: Mapping[str, str]) -> Any:  # transformers
    """The configuration object of `data` with `--arg` values put in; raises `UsageError` for what it does not take."""
    import transformers

    model_type = data.get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        close = near(str(model_type), list(transformers.CONFIG_MAPPING))
        told = f"{label} has model_type {model_type!r}, which transformers {transformers.__version__} does not know"
        newer = 'a newer transformers may: pip install -U "dnnmem[hf]"'
        raise UsageError(told, hint="\n".join(filter(None, (close, newer))))
    cls = transformers.CONFIG_MAPPING[model_type]
    plain = _built(label, cls, data)
    own = {n: text for n, text in args.items() if n not in TASK_ARGUMENTS or n in plain.to_dict()}
    merged = dict(data) | {_own_name(plain, name): _value(label, plain, name, text) for name, text in own.items()}
    if "num_labels" in args:
        merged = {n: v for n, v in merged.items() if n not in {"id2label", "label2id"}}
    config = _built(label, cls, merged) if own else plain
    for part in (config, getattr(config, "text_config", None)):
        if part is not None and getattr(part, "use_cache", None):
            part.use_cache = False  # as Trainer does
    return config


@cache
def known_models() -> dict[str, Any]:
    """The shipped table: Hub id -> aliases, source, parameters, config."""
    text = resources.files("dnnmem.profilers.targets").joinpath("hf_configs.json").read_text(encoding="utf-8")
    models: dict[str, Any] = json.loads(text)["models"]
    return models


def _built(label: str, cls: Any, data: Mapping[str, Any]) -> Any:  # transformers has no types
    try:
        return cls.from_dict(dict(data))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{label}: transformers refuses the configuration: {reason}", hint="change its values"
        ) from error


def _own_name(config: Any, name: str) -> str:  # transformers has no types
    if name in _DTYPES:
        return "dtype" if "dtype" in config.to_dict() else "torch_dtype"
    return str(config.attribute_map.get(name, name))


def _value(label: str, config: Any, name: str, text: str) -> object:  # transformers has no types
    if name in _DTYPES:
        wanted = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=torch.dtype)
        return str(convert(name, text, wanted, label)).removeprefix("torch.")
    fields = {*config.to_dict(), *config.attribute_map, *_EXTRA}
    if name not in fields:
        shown = {*fields, *TASK_ARGUMENTS, "dtype"} - _NOT_SHOWN
        raise unknown_argument(name, {label: sorted(f for f in shown if not f.startswith(("_", "output_")))})
    default = getattr(config, name, None)
    simple = default if isinstance(default, (bool, int, float, str)) else None
    return convert(name, text, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=simple), label)


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}", hint="give a config.json of transformers") from error
    if not isinstance(data, dict) or "model_type" not in data:
        raise UsageError(f"{file} has no model_type", hint="give a config.json of transformers, which names it")
    return data


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
