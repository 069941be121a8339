"""Which cuDNN is asked for workspaces, and the process that asks it.

The installed one is the truth, if it is 9.8 or later. What the builds of torch on the package index ask for (the
requirement nvidia-cudnn-cu12 or -cu13 in their metadata):

    torch   2.5.1, 2.6.0   2.7.1   2.8.0, 2.9.1   2.14.1
    cuDNN   9.1.0          9.5.1   9.10.2         9.24.0

For an older one another cuDNN can be put into the cache folder; the error says how. Its answers are those of a
neighbour: engines and workspaces change with the version, so the result is a range, from a run with its first engines
to one with the largest workspaces of the best eight (`choose`).
"""

from __future__ import annotations

import atexit
import json
import re
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu.build import default_cache, find_compiler
from dnnmem.profilers.virtual_gpu.cudnn_query import OLDEST, device_text
from dnnmem.profilers.virtual_gpu.cudnn_server import FIRST, Summary, Task
from dnnmem.profilers.virtual_gpu.installed import Torch, find_torch

VARIABLE = "DNNMEM_VGPU_CUDNN"
"""Names the server's socket to the stub of cuDNN."""
_WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A cuDNN that can be asked."""

    library: Path
    """libcudnn."""
    version: int
    """`92400` is 9.24.0."""
    installed: int
    """The version that torch itself uses; where it is another one, answers are a neighbour's."""
    before: tuple[Path, ...] = ()
    """What it cannot find itself: libraries that come with torch and lie elsewhere than it expects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running server."""

    address: str
    """Value of `VARIABLE` for the process that has the stub."""
    process: subprocess.Popen[bytes]
    """It ends when its standard input does."""


def find_cudnn(torch: Torch, cache: Path | None = None) -> Asked:
    """The cuDNN to ask: torch's own, or a later one in `cache`. Raises `UnsupportedError` if both are too old."""
    own = _version(torch.includes)
    for library in (f for folder in torch.libraries for f in sorted(folder.glob("libcudnn.so.*"))):
        if own >= OLDEST:
            return Asked(library=library, version=own, installed=own)
    place = (cache / "cudnn" / "nvidia" / "cudnn") if cache else None
    if place:
        version = _version((place / "include",))
        for library in sorted((place / "lib").glob("libcudnn.so.*")):
            if version >= OLDEST:
                return Asked(library=library, version=version, installed=own, before=_companions(torch))
    folder, major = cache / "cudnn" if cache else "FOLDER", torch.cuda.split(".")[0]
    raise UnsupportedError(
        f"cuDNN {spelled(own)}, which comes with torch {torch.version}, cannot be asked for workspaces; "
        f"{spelled(OLDEST)} and later can",
        hint=f"for a range: pip install --no-deps --target {folder} 'nvidia-cudnn-cu{major}>=9.8,<10'",
    )


def _companions(torch: Torch) -> tuple[Path, ...]:
    names = ("libnvrtc.so.*", "libcublasLt.so.*")
    return tuple(path for name in names for folder in torch.libraries for path in sorted(folder.glob(name))[:1])


def _version(includes: tuple[Path, ...]) -> int:
    """Of the headers in one of these folders; 0 if there are none."""
    for folder in includes:
        for name in ("cudnn_version.h", "cudnn_version_v9.h"):
            with suppress(OSError):
                text = (folder / name).read_text("latin-1")
                found = {k: int(v) for k, v in re.findall(r"define CUDNN_(MAJOR|MINOR|PATCHLEVEL)\s+(\d+)", text)}
                if len(found) == 3:
                    return found["MAJOR"] * 10000 + found["MINOR"] * 100 + found["PATCHLEVEL"]
    return 0


def spelled(version: int) -> str:
    """A version as people write it: `92400` -> `9.24`."""
    return f"{version // 10000}.{version // 100 % 100}" if version else "(none)"


def start(
    asked: Asked, device: Device, *, driver: Path | None, cache: Path | None = None, choose: str = FIRST
) -> Service:
    """A server that answers for `device`, until `stop` or this process ends.

    Args: `driver`, the stub of libcuda (None: it is built when it is needed); `cache`, where answers are kept;
    `choose`, which engines it offers first: those that cuDNN likes best (`first`), or of the best eight the ones with
    the largest workspaces (`largest`).
    """
    return _start(_task(asked, device, driver=driver, cache=cache, choose=choose))


def _task(asked: Asked, device: Device, *, driver: Path | None, cache: Path | None, choose: str) -> Task:
    return Task(
        library=str(asked.library),
        before=tuple(map(str, asked.before)),
        driver=str(driver) if driver else None,
        version=asked.version,
        device=device_text(device),
        capability=device.compute_capability,
        cache=str(cache) if cache else None,
        choose=choose,
    )


def _start(task: Task) -> Service:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind("")  # the kernel chooses a name that is no file
        listening.listen(64)
        command = [sys.executable, "-m", "dnnmem.profilers.virtual_gpu.cudnn_server", json.dumps(asdict(task))]
        process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(listening.fileno(),),
            start_new_session=True,
        )
        # from here on the server alone holds the socket: if it dies, those who ask are refused and need not wait
        return Service(address="@" + listening.getsockname()[1:].decode(), process=process)


def stop(service: Service) -> None:
    """End the server; does nothing if it has ended."""
    if service.process.stdin:
        service.process.stdin.close()
    try:
        service.process.wait(_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        service.process.kill()
        service.process.wait()


_running: dict[Task, Service] = {}


def running(asked: Asked, device: Device, *, driver: Path | None, cache: Path | None) -> Service:
    """A server as `start` gives it, one for all who want the same; it lasts as long as this process."""
    task = _task(asked, device, driver=driver, cache=cache, choose=FIRST)
    if task in _running and _running[task].process.poll() is not None:
        del _running[task]
    if task not in _running:
        _running[task] = _start(task)
        atexit.register(stop, _running[task])
    return _running[task]


def address_for(device: Device, cache: Path | None = None) -> str:
    """Where a process without the stub libraries can ask about `device`, as long as this process lasts.

    Raises `UnsupportedError` where nobody can be asked, and says why.
    """
    if sys.platform != "linux":
        raise UnsupportedError(f"cuDNN is asked for them on Linux only; this is {sys.platform}")
    torch = find_torch()
    device_text(device)  # first: it is quick to say no
    asked = find_cudnn(torch, cache or default_cache())
    find_compiler()
    return running(asked, device, driver=None, cache=cache or default_cache()).address


def summary(service: Service) -> Summary | None:
    """What was asked so far; None if the server has died."""
    answer = talk(service.address, json.dumps({"summary": True}))
    return Summary(**json.loads(answer)) if answer else None


def talk(address: str, line: str, *, wait_seconds: float = _WAIT_SECONDS) -> str | None:
    """The answer to one line; None if nobody answers at `address` in that time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(wait_seconds)
        try:
            connection.connect("\0" + address.removeprefix("@"))
            connection.sendall(line.encode() + b"\n")
            with connection.makefile("r", encoding="utf-8") as answers:
                return answers.readline().strip() or None
        except OSError:
            return None
