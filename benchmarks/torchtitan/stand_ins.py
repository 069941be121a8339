"""What a torchtitan train.py needs of the outside world, replaced: data, tokenizer, the other ranks, loggers.

None of these decides an allocation on the GPU. All that does (model, parallelism, checkpointing, optimizer, loss,
garbage collection) is torchtitan's own code, as it stands at the commit that is run.
"""

from __future__ import annotations

import dataclasses
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
import torch.distributed

ABSENT = frozenset({
    "PIL", "blobfile", "datasets", "requests", "sentencepiece", "tensorboard", "tiktoken", "tokenizers", "torchdata",
    "torchvision", "wandb",
})  # fmt: skip
"""Packages for data, text and logging: importing them gives `Anything`. torchao and torchft are left out on purpose:
torchtitan does without where they are missing."""

Spec: TypeAlias = Any
"""torchtitan's own TrainSpec, a dataclass that each commit makes anew."""


class Anything:
    """Takes any arguments, has any attribute, can be called; does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        """Accept everything."""

    def __getattr__(self, name: str) -> Anything:
        """Be anything."""
        return Anything()

    def __call__(self, *_: object, **__: object) -> Anything:
        """Do nothing."""
        return Anything()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes modules of `ABSENT`, whose every name is a class of its own below `Anything`."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] in ABSENT or name == "torch.utils.tensorboard":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__dict__["__getattr__"] = _attribute
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _attribute(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Anything,), {})


def replace_packages() -> None:
    """Let imports of `ABSENT` succeed, whether or not those are installed."""
    sys.meta_path.insert(0, _Finder())


def replace_checkpoint_parts() -> None:
    """Let imports of what the installed torch's checkpointing lacks yet succeed: no row of ours saves a checkpoint."""
    from torch.distributed.checkpoint import staging

    staging.__dict__["__getattr__"] = _attribute


def replace_rendezvous() -> None:
    """Let this process be the rank that its environment says, with no other process to meet."""
    join = torch.distributed.init_process_group

    def alone(backend: str | None = None, *_: object, **kwargs: object) -> None:
        for name in ("store", "rank", "world_size", "init_method"):
            kwargs.pop(name, None)
        kwargs |= {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
        join(backend, store=torch.distributed.HashStore(), **kwargs)

    torch.distributed.init_process_group = alone


class Tokenizer:
    """Knows how many words there are."""

    bos_id, eos_id, pad_id = 1, 2, 0

    def __init__(self, words: int) -> None:
        """`words`: size of the vocabulary."""
        self.n_words = words

    def get_vocab_size(self) -> int:
        """Size of the vocabulary, as later commits ask for it."""
        return self.n_words

    def encode(self, *_: object, **__: object) -> list[int]:
        """One word, whatever the text."""
        return [1]


class Loader:
    """Batches of random words: (words, labels), or ({"input": words}, labels)."""

    def __init__(self, batch: int, seq: int, *, words: int, named: bool) -> None:
        """`named`: the commit wants a dictionary."""
        self.batch, self.seq, self.words, self.named = batch, seq, words, named

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        """Never ends."""
        while True:
            drawn = torch.randint(0, self.words, (self.batch, self.seq + 1))
            words, labels = drawn[:, :-1].clone(), drawn[:, 1:].clone()
            yield ({"input": words} if self.named else words), labels

    def state_dict(self) -> dict[str, object]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Nothing to load."""


def replace_data(source: Path, words: int) -> None:
    """Give torchtitan a `Tokenizer` of `words` words and a `Loader`, at the place where the commit in `source` asks."""
    named = "input_dict" in train_py(source).read_text(encoding="utf-8")
    if (source / "train.py").exists():
        _replace_functions(words, named=named)
    else:
        _replace_in_specs(words, named=named)


def train_py(source: Path) -> Path:
    """The training script: it moved into the package in February 2025."""
    old = source / "train.py"
    return old if old.exists() else source / "torchtitan" / "train.py"


def _replace_functions(words: int, *, named: bool) -> None:
    import torchtitan.datasets as data

    data.build_tokenizer = lambda *_, **__: Tokenizer(words)
    data.build_hf_data_loader = lambda _name, _path, _tokenizer, batch, seq, *_, **__: Loader(
        batch, seq, words=words, named=named
    )


def _replace_in_specs(words: int, *, named: bool) -> None:
    import torchtitan.protocols.train_spec as specs

    find: Callable[[str], Spec] = specs.get_train_spec

    def loader(*_: object, job_config: SimpleNamespace, **__: object) -> Loader:
        training = job_config.training
        batch = training.local_batch_size if hasattr(training, "local_batch_size") else training.batch_size
        return Loader(batch, training.seq_len, words=words, named=named)

    def replaced(name: str) -> Spec:
        return dataclasses.replace(
            find(name), build_tokenizer_fn=lambda *_, **__: Tokenizer(words), build_dataloader_fn=loader
        )

    specs.get_train_spec = replaced


def watch_memory(report: Callable[[], None]) -> None:
    """Call `report` each time torchtitan reads peak memory: when the model is made, and before each line of its log."""
    monitor = _monitor()
    read = monitor.get_peak_stats

    def reported(self: object) -> object:
        report()
        return read(self)

    monitor.get_peak_stats = reported


def _monitor() -> type:
    try:
        from torchtitan.components import metrics
    except ModuleNotFoundError:
        from torchtitan import metrics
    return metrics.DeviceMemoryMonitor
