"""The child process that runs a training script as `__main__`, on whatever GPU its environment shows.

    argv      REQUEST.json FOLDER FD    ->  FOLDER/result.json  (and FOLDER/step.trace.json.gz if it records)
    FD        one line for each training step, for the parent's progress; without a parent all of this ends
    stdout, stderr    the script's own

The run ends by leaving the process at once, after the result is written: no `except` or `finally` of the script, no
tear-down of process groups and no worker's join can hold it up.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import select
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, NoReturn

from dnnmem import __version__
from dnnmem.profilers.script_imports import after_import
from dnnmem.profilers.script_request import ScriptRequest
from dnnmem.profilers.script_result import RankResult

RESULT_FILE = "result.json"
TRACE_FILE = "step.trace.json.gz"

_TRIES = 50
"""Of removing a folder into which the script may write meanwhile."""
_LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "accelerate",
    "lightning",
    "deepspeed",
    "peft",
    "diffusers",
)


def main(argv: list[str]) -> NoReturn:
    """Run one script; never returns."""
    request = ScriptRequest.from_json(Path(argv[0]).read_text())
    Session(request, Path(argv[1]), os.fdopen(int(argv[2]), "w", buffering=1)).run()


class Session:
    """One run of one script in this process."""

    def __init__(self, request: ScriptRequest, folder: Path, progress: IO[str]) -> None:
        """Args: `folder` for the results, `progress` for a line a step."""
        self.request = request
        self.folder = folder
        self._progress = progress
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._watch: Any = None
        target = Path(request.script)
        self.roots = [str(Path.cwd())] if request.is_module else [str(target.resolve().parent), str(Path.cwd())]

    def run(self) -> NoReturn:
        """Run the script to its end, or as far as the steps go."""
        threading.Thread(target=self._end_with_parent, daemon=True).start()
        if self.request.timeout_seconds is not None:
            timer = threading.Timer(self.request.timeout_seconds, self._too_long)
            timer.daemon = True
            timer.start()
        with after_import("torch", self._torch_loaded):
            try:
                self._run_main()
            except SystemExit as exit_:
                self._exited(exit_.code)
            except BaseException as error:  # noqa: BLE001 - the parent must hear of everything
                self._raised(error)
        self.leave("ran")

    def leave(self, outcome: str, **facts: Any) -> NoReturn:
        """Write the result and end the process; a second caller waits for the first one's end."""
        self._lock.acquire()
        try:
            result = self._result(outcome, facts)
        except Exception as error:  # noqa: BLE001 - whatever happens, the process must end here
            result = self._told("failed", message=f"what the run needed cannot be read: {error!r}")
        partial = self.folder / f"{RESULT_FILE}.tmp"
        partial.write_text(result.to_json())
        partial.replace(self.folder / RESULT_FILE)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        if self.request.rank is not None and not self.request.alone:
            threading.Event().wait()  # the others may still need this process's store; the parent ends them all
        os._exit(0)

    def _result(self, outcome: str, facts: dict[str, Any]) -> RankResult:
        known = self._watch.facts() if self._watch is not None else {}
        return self._told(outcome, **{**known, **facts, "notes": (*known.get("notes", ()), *facts.get("notes", ()))})

    def _told(self, outcome: str, **facts: Any) -> RankResult:
        return RankResult(
            outcome=outcome,
            rank=self.request.rank,
            world_size=self.request.world_size,
            versions=self.versions(),
            seconds=time.monotonic() - self._start,
            **facts,
        )

    def _end_with_parent(self) -> None:
        """Wait until nobody listens to the progress; then end this process and all that it started."""
        poll = select.poll()
        poll.register(self._progress, 0)
        while not any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll()):
            pass
        for _ in range(_TRIES):  # the script may write there meanwhile
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                break
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # the last one
        os.killpg(0, signal.SIGKILL)

    def step_done(self, steps: int) -> None:
        """Tell the parent."""
        with contextlib.suppress(OSError, ValueError):
            self._progress.write(f"{steps}\n")

    def versions(self) -> dict[str, str]:
        """Versions of what decides the run; libraries count if the script loaded them."""
        found = {"dnnmem": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
        loaded = {name: sys.modules[name] for name in _LIBRARIES if name in sys.modules}
        return {**found, **{name: str(getattr(module, "__version__", "?")) for name, module in loaded.items()}}

    def _run_main(self) -> None:
        request = self.request
        if request.is_module:
            sys.path[0] = str(Path.cwd())
            sys.argv = [request.script, *request.arguments]
            runpy.run_module(request.script, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(request.script).resolve().parent)
            sys.argv = [request.script, *request.arguments]
            runpy.run_path(request.script, run_name="__main__")

    def _torch_loaded(self) -> None:
        try:
            from dnnmem.profilers.script_watch import Watch

            self._watch = Watch(self)
        except Exception as error:  # noqa: BLE001 - dnnmem's own fault must not look like the script's
            self.leave("failed", message=f"dnnmem cannot watch this torch: {type(error).__name__}: {error}")

    def _exited(self, code: object) -> NoReturn:
        if code in (None, 0):
            self.leave("ran")
        oom = self._watch.last_failure("") if self._watch is not None else None
        if oom is not None:
            self.leave("out_of_memory", oom=oom)
        said = f": {code}" if isinstance(code, str) else f" with exit code {code}"
        self.leave("failed", message=f"the script ended itself{said}")

    def _raised(self, error: BaseException) -> NoReturn:
        from dnnmem.profilers.targets.frames import trim_traceback

        text = trim_traceback(error, self.roots)
        oom = self._watch.out_of_memory(error) if self._watch is not None else None
        if oom is not None:
            self.leave("out_of_memory", oom=oom, message=text)
        self.leave("failed", message=text)

    def _too_long(self) -> NoReturn:
        from dnnmem.profilers.script_stacks import find_source, main_frames

        place = find_source(main_frames(), self.roots)
        seconds = self.request.timeout_seconds
        where = f"; it was at {place}" if place else ""
        self.leave("timed_out", message=f"the script made no end within {seconds:g} s{where}")


if __name__ == "__main__":
    main(sys.argv[1:])
