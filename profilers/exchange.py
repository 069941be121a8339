"""Passes small payloads between the ranks of one job: whoever has one leaves it here, whoever needs it asks and waits.

    rank 0   PUT (group, 0, everyone, 7)  5    ->  kept until its readers have it
    rank 1   GET (group, 0, everyone, 7)       ->  5, at once or as soon as rank 0 has put it

The ranks' side is payload.c. A socket of Linux's abstract names is nobody's file: it is gone with the last process that
holds it. Nobody who waits waits for ever: for a rank that has ended, or too long, the answer is an error.

Imports no torch.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

WAIT_SECONDS = 600.0
"""How long a rank waits for another one: as long as torch's watchdog lets NCCL wait."""

FRAME = struct.Struct("=IIQiiII")
"""kind, readers, group, source, destination, number, bytes that follow."""
ANSWER = struct.Struct("=II")
"""0 or 1 for an error, bytes that follow."""
HELLO, JOIN, PUT, GET = range(1, 5)
EVERYONE = -1
"""In place of a destination."""
JOB = 0
"""The group in which every rank has its number in the job."""

_CREDENTIALS = struct.Struct("3i")
_TICK_SECONDS = 0.5

_Key = tuple[int, int, int, int]
"""Group, source, destination, number."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Caller:
    """One thread of one rank."""

    socket: socket.socket
    """Its connection."""
    rank: int = -1
    """In the job."""
    heard: bytearray = field(default_factory=bytearray)
    """What has come of its next frame."""
    to_say: bytearray = field(default_factory=bytearray)
    """What it has not taken yet."""
    asked: deque[tuple[_Key, float]] = field(default_factory=deque)
    """What it waits for, in order, and since when."""


class Exchange:
    """The payloads of one job, in a thread of this process."""

    def __init__(self, wait_seconds: float = WAIT_SECONDS) -> None:
        """Begin to listen."""
        self.name = f"dnnmem-{secrets.token_hex(16)}"
        """Abstract name of the socket."""
        self._wait_seconds = wait_seconds
        self._kept: dict[_Key, tuple[int, bytes]] = {}
        self._job_ranks: dict[tuple[int, int], int] = {}
        self._absent: dict[int, str] = {}
        self._wanted: set[int] = set()
        self._callers: set[_Caller] = set()
        self._lock = threading.Lock()
        self._open = True
        self._selector = selectors.DefaultSelector()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(f"\0{self.name}")
        self._socket.listen(64)
        self._socket.setblocking(False)  # noqa: FBT003 - its only argument
        self._ear, self._mouth = socket.socketpair()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def absent(self, rank: int, why: str) -> None:
        """From now on, whoever waits for a payload that `rank` has not put is told `why`."""
        with self._lock:
            self._absent[rank] = why
        self._wake()

    def wanted(self) -> set[int]:
        """Ranks that somebody has waited for since the last call, and that never said anything."""
        with self._lock:
            wanted, self._wanted = self._wanted, set()
        return wanted

    def close(self) -> None:
        """Leave nothing behind."""
        self._open = False
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        with suppress(OSError):
            self._mouth.send(b".")

    def _serve(self) -> None:
        while self._open:
            for key, events in self._selector.select(_TICK_SECONDS):
                if key.fileobj is self._socket:
                    self._accept()
                elif key.fileobj is self._ear:
                    self._ear.recv(4096)
                else:
                    self._attend(key.data, events)
            self._answer_all()
        for caller in list(self._callers):
            self._drop(caller)
        for it in (self._socket, self._ear, self._mouth, self._selector):
            it.close()

    def _accept(self) -> None:
        connection, _ = self._socket.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
            connection.close()
            return
        connection.setblocking(False)  # noqa: FBT003
        caller = _Caller(socket=connection)
        self._callers.add(caller)
        self._selector.register(connection, selectors.EVENT_READ, caller)

    def _attend(self, caller: _Caller, events: int) -> None:
        """Hear what a caller says, and say on what it has not taken."""
        try:
            if events & selectors.EVENT_READ:
                heard = caller.socket.recv(1 << 20)
                if not heard:
                    self._drop(caller)
                    return
                caller.heard += heard
                self._take_frames(caller)
            if events & selectors.EVENT_WRITE:
                self._say(caller)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(caller)

    def _drop(self, caller: _Caller) -> None:
        self._callers.discard(caller)
        self._selector.unregister(caller.socket)
        caller.socket.close()

    def _take_frames(self, caller: _Caller) -> None:
        while len(caller.heard) >= FRAME.size:
            kind, readers, group, source, destination, number, nbytes = FRAME.unpack_from(caller.heard)
            if len(caller.heard) < FRAME.size + nbytes:
                return
            body = bytes(caller.heard[FRAME.size : FRAME.size + nbytes])
            del caller.heard[: FRAME.size + nbytes]
            key = group, source, destination, number
            if kind == HELLO:
                caller.rank = source
                self._job_ranks[JOB, source] = source
            elif kind == JOIN:
                self._job_ranks[group, source] = caller.rank
            elif kind == PUT:
                self._kept[key] = readers, body
            elif kind == GET:
                caller.asked.append((key, time.monotonic()))

    def _answer_all(self) -> None:
        for caller in list(self._callers):
            said = bool(caller.to_say)
            while caller.asked and (answer := self._answer(caller, *caller.asked[0])) is not None:
                caller.asked.popleft()
                caller.to_say += answer
            if caller.to_say and not said:
                try:
                    self._say(caller)
                except OSError:
                    self._drop(caller)

    def _say(self, caller: _Caller) -> None:
        with suppress(BlockingIOError):
            del caller.to_say[: caller.socket.send(caller.to_say)]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if caller.to_say else 0)
        self._selector.modify(caller.socket, events, caller)

    def _answer(self, caller: _Caller, key: _Key, since: float) -> bytes | None:
        """What a caller hears who asked for `key`; None: it has to wait."""
        if key in self._kept:
            readers, body = self._kept.pop(key)
            if readers > 1:
                self._kept[key] = readers - 1, body
            return ANSWER.pack(0, len(body)) + body
        source = self._job_ranks.get(key[:2], key[1] if key[0] == JOB else None)
        with self._lock:
            if source is not None and (key[0], key[1]) not in self._job_ranks:
                self._wanted.add(source)
            why = self._absent.get(source) if source is not None else None
        if why is None and time.monotonic() - since > self._wait_seconds:
            why = f"it has waited for {self._wait_seconds:g} s"
        if why is None:
            return None
        who = "another rank" if source is None else f"rank {source}"
        text = f"rank {caller.rank} waits for what {who} sends: {why}".encode()
        return ANSWER.pack(1, len(text)) + text
