"""Runs many requests in one child process after another: torch is imported once, and a death costs one request only.

Requests whose child needs the same environment share one. Where a child dies, the request that it was at gets the
blame, and another child takes those that are left. Imports no torch.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import DnnmemError
from dnnmem.profilers.children import end, follow, start
from dnnmem.profilers.place import Place, place
from dnnmem.profilers.request import Request
from dnnmem.profilers.run import LAST_LINES, QUIET, child_error
from dnnmem.profilers.worker import ERROR_FILE, TRACE_FILE

Answer = tuple[int, Path | DnnmemError]
"""Index of a request, and its saved trace or what went wrong."""


def run_many(
    requests: Sequence[Request],
    folder: Path,
    *,
    cache: Path | None = None,
    gpus: Sequence[Device | None] = (),
    on_output: Callable[[str], None] = lambda _: None,
) -> Iterator[Answer]:
    """Run the requests in child processes; the answers, each as soon as it is there.

    Args: `folder` takes the answers' files; `cache` keeps what a virtual GPU is built of; `gpus` are the requests' own
    where those are no packaged ones; `on_output` gets each line that the users' code prints.
    """
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i, request in enumerate(requests):
        home = folder / str(i)
        home.mkdir()
        settled = _settle(request, gpus[i] if gpus else None, home, cache, on_output)
        if isinstance(settled, DnnmemError):
            yield i, settled
            continue
        (home / "request.json").write_text(settled.request.to_json())
        groups.setdefault(tuple(sorted(settled.environment.items())), []).append(i)
    for environment, members in groups.items():
        left = members
        while left:
            done = 0
            for answer in _run_child(left, folder, dict(environment), on_output):
                yield answer
                done += 1
            left = left[done:]


def _settle(
    request: Request, gpu: Device | None, home: Path, cache: Path | None, say: Callable[[str], None]
) -> Place | DnnmemError:
    try:
        return place(request, {**QUIET, **os.environ}, gpu=gpu, cache=cache, error_file=home / ERROR_FILE, say=say)
    except DnnmemError as error:
        return error


def _run_child(
    left: Sequence[int], folder: Path, environment: dict[str, str], on_output: Callable[[str], None]
) -> Iterator[Answer]:
    """Answers of one child, at least one; less than all if it dies."""
    homes = {i: folder / str(i) for i in left}
    pairs = [str(path) for home in homes.values() for path in (home / "request.json", home)]
    last: deque[str] = deque(maxlen=LAST_LINES)

    def heard(line: str) -> None:
        last.append(line)
        on_output(line)

    child = start([sys.executable, "-m", "dnnmem.profilers.worker", *pairs], environment, apart=True)
    assert child.stdout is not None and child.stderr is not None  # noqa: S101, PT018 - pipes were asked for
    thread = follow(child.stderr, heard)
    waiting = deque(left)
    try:
        for _ in child.stdout:  # a step of some request is done
            while waiting and _answer(homes[waiting[0]]):
                yield waiting[0], _found(homes[waiting.popleft()])
        code = child.wait()
    finally:
        child.stdout.close()
        end(child)
        thread.join(timeout=2)
    while waiting and _answer(homes[waiting[0]]):
        yield waiting[0], _found(homes[waiting.popleft()])
    if waiting:
        yield waiting[0], child_error(homes[waiting[0]], code, None, list(last))


def _answer(home: Path) -> bool:
    return (home / TRACE_FILE).exists() or (home / ERROR_FILE).exists()


def _found(home: Path) -> Path | DnnmemError:
    return home / TRACE_FILE if (home / TRACE_FILE).exists() else child_error(home, 1, None, [])
