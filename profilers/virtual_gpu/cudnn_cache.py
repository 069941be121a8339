"""Answers of cuDNN that are kept: one file for each cuDNN version and compute capability, a line for each operation.

    cache/cudnn/92400-9.0.jsonl     ["4f6c...", [[38, 25837584, 1, 0], ...]]

A line is added with one write at the end of the file, so processes can add at the same time. A line that a killed
process left half written is skipped; the next one begins on a line of its own. Where the folder cannot be written the
answers live in memory alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnmem.profilers.virtual_gpu.cudnn_query import Engine


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of one cuDNN about one compute capability."""

    path: Path | None
    """Where they are kept; None: nowhere."""
    known: dict[str, list[Engine]]
    """By `key_of` their question."""


def key_of(question: Any) -> str:
    """What a question is found by.

    >>> key_of({"mode": 0, "graph": []}) == key_of({"graph": [], "mode": 0})
    True
    """
    text = json.dumps(question, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def open_answers(folder: Path | None, version: int, capability: str) -> Answers:
    """What is known already of cuDNN `version` on a GPU of `capability`; an unreadable folder knows nothing."""
    if folder is None:
        return Answers(None, {})
    path = folder / "cudnn" / f"{version}-{capability}.jsonl"
    known: dict[str, list[Engine]] = {}
    with suppress(OSError):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                key, engines = json.loads(line)
                known[str(key)] = [Engine(*map(int, engine)) for engine in engines]
    return Answers(path, known)


def keep(answers: Answers, key: str, engines: Sequence[Engine]) -> None:
    """Remember an answer, on disk too if that can be."""
    answers.known[key] = list(engines)
    if answers.path is None:
        return
    line = f"\n{json.dumps([key, engines], separators=(',', ':'))}\n".encode()
    with suppress(OSError):
        answers.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(answers.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)
