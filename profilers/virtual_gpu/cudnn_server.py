"""The process that asks the real cuDNN for the stub of it: a question a line on a socket, an answer a line.

    {"mode": 0, "graph": [...]}  ->  [[38, 25837584, 1, 0], ...]     engine, workspace, notes, behavior; best first
    {"summary": true}            ->  {"version": 92400, "asked": 161, "unknown": {}, ...}
    anything else                ->  {"error": "..."}

It runs without the stub libraries, next to the process that has them, loads cuDNN for the first question that it has no
answer to, and ends when its standard input does: with the process that started it, however that ends.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu.build import build
from dnnmem.profilers.virtual_gpu.cudnn_cache import Answers, keep, key_of, open_answers
from dnnmem.profilers.virtual_gpu.cudnn_query import Cudnn, Engine, QuestionError, ask, load_cudnn

TOP = 8
"""How many of the best engines a range is made of."""
FIRST, LARGEST = "first", "largest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a server is started with."""

    library: str
    """Path of libcudnn."""
    before: tuple[str, ...]
    """Paths of libraries that are loaded first."""
    driver: str | None
    """Path of the stub of libcuda, which is loaded before them; None = it is built for the first question."""
    version: int
    """Of the cuDNN in `library`."""
    device: str
    """The GPU (`device_text`)."""
    capability: str
    """Its compute capability."""
    cache: str | None
    """Folder where answers are kept."""
    choose: str
    """`first`: engines as cuDNN orders them; `largest`: of the best `TOP`, the one with the largest workspace first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was asked in a server's life. An operation that is asked again is not counted again."""

    version: int
    """Of the cuDNN that answered."""
    asked: int = 0
    """Operations."""
    unknown: dict[str, int] = field(default_factory=dict)
    """Operations that cuDNN did not answer, by what it said; a stub then takes no workspace."""
    first_bytes: int = 0
    """Largest workspace among the engines that cuDNN likes best."""
    top_bytes: int = 0
    """Largest workspace among the best `TOP` engines of all operations."""


@dataclass(slots=True, kw_only=True)
class _Desk:
    """Where questions are answered, one at a time."""

    task: Task
    answers: Answers
    cudnn: Cudnn | None = None
    asked: dict[str, list[Engine] | str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def reply(desk: _Desk, line: bytes) -> str:
    """The answer to one line."""
    try:
        question = json.loads(line)
        if isinstance(question, dict) and question.get("summary"):
            return json.dumps(asdict(_summary(desk)))
        with desk.lock:
            engines = _engines(desk, question)
    except QuestionError as error:
        return json.dumps({"error": error.message})
    except ValueError as error:
        return json.dumps({"error": f"this is not JSON: {error}"})
    return json.dumps(_in_order(engines, desk.task.choose), separators=(",", ":"))


def _engines(desk: _Desk, question: Any) -> list[Engine]:
    key = key_of(question)
    if key not in desk.asked:
        desk.asked[key] = _find_out(desk, key, question)
    found = desk.asked[key]
    if isinstance(found, str):
        raise QuestionError(found)
    return found


def _find_out(desk: _Desk, key: str, question: Any) -> list[Engine] | str:
    """The engines; or why there are none."""
    engines = desk.answers.known.get(key)
    if engines is None:
        try:
            engines = ask(_cudnn(desk), question, desk.task.device)
        except QuestionError as error:
            return error.message
        keep(desk.answers, key, engines)
    return engines if _usable(engines) else "cuDNN offers no engine that works"


def _cudnn(desk: _Desk) -> Cudnn:
    """Loaded for the first question whose answer is not kept: most models have none."""
    if desk.cudnn is None:
        task = desk.task
        try:
            driver = Path(task.driver) if task.driver else build(_cache(task))[0] / "libcuda.so.1"
            desk.cudnn = load_cudnn(Path(task.library), [driver, *map(Path, task.before)])
        except UnsupportedError:
            os._exit(1)  # those who ask are refused, and say so
    return desk.cudnn


def _cache(task: Task) -> Path | None:
    return Path(task.cache) if task.cache else None


def _usable(engines: Sequence[Engine]) -> list[Engine]:
    return [engine for engine in engines if engine.workspace_bytes >= 0]


def _in_order(engines: Sequence[Engine], choose: str) -> list[Engine]:
    """Engines as the stub shall offer them."""
    best = _usable(engines)[:TOP]
    if choose == FIRST or not best:
        return list(engines)
    largest = max(best, key=lambda engine: engine.workspace_bytes)
    return [largest, *(engine for engine in engines if engine is not largest)]


def _summary(desk: _Desk) -> Summary:
    with desk.lock:
        answered = [_usable(found) for found in desk.asked.values() if not isinstance(found, str)]
        reasons = [found for found in desk.asked.values() if isinstance(found, str)]
        return Summary(
            version=desk.task.version,
            asked=len(desk.asked),
            unknown={reason: reasons.count(reason) for reason in reasons},
            first_bytes=max((engines[0].workspace_bytes for engines in answered if engines), default=0),
            top_bytes=max((e.workspace_bytes for engines in answered for e in engines[:TOP]), default=0),
        )


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, desk: _Desk) -> None:
        super().__init__("", _Conversation, bind_and_activate=False)
        self.socket.close()
        self.socket, self.desk = listening, desk


class _Conversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Server)  # noqa: S101 - nobody else makes one
        for line in self.rfile:
            self.wfile.write(reply(self.server.desk, line).encode() + b"\n")


def main(arguments: Sequence[str]) -> None:
    """Serve until standard input ends. Arguments: a `Task` as JSON, the number of the listening socket."""
    task = Task(**json.loads(arguments[0]))
    listening = socket.socket(fileno=int(arguments[1]))
    desk = _Desk(task=task, answers=open_answers(_cache(task), task.version, task.capability))
    server = _Server(listening, desk)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.buffer.read()
    os._exit(0)  # threads that wait for cuDNN have nothing to put in order


if __name__ == "__main__":
    main(sys.argv[1:])
