"""Builds the stub libraries with the machine's C compiler, once for each installed torch, and keeps them in a cache.

    cache/virtual-gpu/KEY/libcuda.so.1 ...    KEY: torch, its headers, these sources, the compiler, pynvml

A build happens in a folder of its own, which gets its name by one rename when it is complete: two builds at the same
time do the same work twice, and one that dies leaves nothing that anybody takes for a result.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu.elf import defined
from dnnmem.profilers.virtual_gpu.generate import declared, entry_points_text, newest_versions, stubs_text
from dnnmem.profilers.virtual_gpu.installed import HEADERS, WITHOUT, Torch, find_torch, kernel_targets
from dnnmem.profilers.virtual_gpu.libraries import LIBRARIES, Library
from dnnmem.profilers.virtual_gpu.wanted import Wanted, find_wanted

SOURCES = Path(__file__).resolve().parent
TARGETS = "kernel-targets.txt"
"""File beside the libraries: `installed.kernel_targets`."""
COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-pthread")
_GENERATORS = ("build.py", "elf.py", "generate.py", "installed.py", "libraries.py", "reviewed.py", "wanted.py")
"""Modules that decide what is built."""
_HOUR_SECONDS = 3600.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a compiler may say of the place, and not of the sources."""


def find_compiler() -> tuple[str, ...]:
    """Command of a C compiler: the machine's, or that of the package ziglang. Raises `UnsupportedError` without one."""
    for name in COMPILERS:
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc")
    raise UnsupportedError(
        f"the virtual GPU needs a C compiler, and there is none here: {', '.join(COMPILERS)}",
        hint="install one, or: pip install 'dnnmem[cc]'",
    )


def default_cache() -> Path:
    """Where the libraries are kept if nobody says otherwise."""
    return Path.home() / ".cache" / "dnnmem"


def build(cache: Path | None = None) -> tuple[Path, str]:
    """Folder with the libraries for the installed torch, built if they are not there yet, and a note that may be empty.

    `cache`: a folder to keep them in; where it cannot be written, they go to a temporary one and the note says so.
    Raises `UnsupportedError` if torch is not for CUDA, there is no compiler, or the compiler refuses the sources.
    """
    torch = find_torch()
    compiler = find_compiler()
    name = f"{torch.version}-{_key(torch, compiler)}"
    wished = (cache or default_cache()) / "virtual-gpu"
    if _is_complete(wished / name):
        return wished / name, ""
    try:
        wished.mkdir(parents=True, exist_ok=True)
        _sweep(wished)
        return _build_in(wished, name, torch, compiler), ""
    except OSError as error:
        own = _temporary_cache()
        note = f"{wished} cannot be written ({error.strerror}): the virtual GPU's libraries are kept in {own} instead"
    if _is_complete(own / name):
        return own / name, note
    try:
        return _build_in(own, name, torch, compiler), note
    except OSError as error:
        raise UnsupportedError(
            f"the virtual GPU's libraries can be kept neither in {wished} nor in {own}: {error.strerror}",
            hint="set DNNMEM_CACHE to a folder that can be written and has 10 MB of room",
        ) from error


def read_targets(folder: Path) -> tuple[int, ...]:
    """What the kernels of the torch are compiled for that the libraries in `folder` were built for."""
    return tuple(map(int, (folder / TARGETS).read_text().split()))


def _key(torch: Torch, compiler: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((torch.version, torch.cuda, compiler)).encode())
    written = sorted(path for path in SOURCES.rglob("*") if path.suffix in {".c", ".h"})
    for path in [*written, *(SOURCES / name for name in _GENERATORS)]:
        digest.update(path.read_bytes())
    digest.update(" ".join(sorted(frozenset[str]().union(*map(_nvml_names, LIBRARIES)))).encode())
    for header in HEADERS:
        path = torch.header(header)
        digest.update(f"{path} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def _is_complete(folder: Path) -> bool:
    return folder.is_dir()


def _temporary_cache() -> Path:
    """A folder of this user's own under the temporary one; what another user may have put there is not trusted."""
    folder = Path(tempfile.gettempdir()) / f"dnnmem-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if folder.is_symlink() or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="dnnmem-"))
    return folder


def _sweep(cache: Path) -> None:
    """Remove what builds that died have left, an hour after."""
    for folder in cache.glob(".building-*"):
        if time.time() - folder.stat().st_mtime > _HOUR_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _build_in(cache: Path, name: str, torch: Torch, compiler: tuple[str, ...]) -> Path:
    partial = Path(tempfile.mkdtemp(prefix=".building-", dir=cache))
    try:
        _compile_all(partial, torch, compiler)
        try:
            partial.rename(cache / name)
        except OSError:
            if not _is_complete(cache / name):  # else somebody else was quicker, with the same result
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return cache / name


def _compile_all(folder: Path, torch: Torch, compiler: tuple[str, ...]) -> None:
    """All libraries into `folder`: sources in parallel, then the first library, then the others, linked with it."""
    work = folder / "work"
    work.mkdir()
    includes = [f"-I{path}" for path in (SOURCES, SOURCES / "include", *torch.includes)]
    jobs = [(SOURCES / source, work / f"{source}.o") for library in LIBRARIES for source in library.sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wanted = pool.submit(find_wanted, torch)
        hidden = [*compiler, *_FLAGS, *includes, "-fvisibility=hidden", "-c"]
        list(pool.map(lambda job: _run([*hidden, str(job[0]), "-o", str(job[1])]), jobs))
        driver, *others = LIBRARIES
        _link(driver, folder, torch, wanted.result(), compiler)
        list(pool.map(lambda library: _link(library, folder, torch, wanted.result(), compiler), others))
    (folder / TARGETS).write_text(" ".join(map(str, kernel_targets(torch))))
    shutil.rmtree(work)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")  # what `-lcuda` finds, when a kernel's launcher is linked


def _link(library: Library, folder: Path, torch: Torch, wanted: Wanted, compiler: tuple[str, ...]) -> None:
    """One library: its objects, and the generated functions that nobody has written by hand."""
    work, soname = folder / "work", wanted.soname(library)
    objects = [work / f"{source}.o" for source in library.sources]
    by_hand = frozenset[str]().union(*map(defined, objects))
    newest = newest_versions(torch)
    names = wanted.names(library) | declared(library, torch) | _nvml_names(library)
    names |= {newest[name] for name in names if name in newest}
    text = stubs_text(library, names - by_hand)
    is_driver = library is LIBRARIES[0]
    if is_driver:
        text += entry_points_text(names | {n for n in by_hand if n.startswith("cu")}, newest)
    (work / f"{soname}.c").write_text(text)
    command = [*compiler, *_FLAGS, "-w", "-shared", str(work / f"{soname}.c"), *map(str, objects)]
    command += ["-o", str(folder / soname), f"-Wl,-soname,{soname}", "-Wl,-rpath,$ORIGIN"]
    if any(where == soname for _, where in wanted.symbols):  # then symbols carry the library's name as their version
        (work / f"{soname}.map").write_text(f"{soname} {{ global: *; }};\n")
        command += ["-Xlinker", f"--version-script={work / f'{soname}.map'}"]  # -Wl would part a path with a comma
    _run(command if is_driver else [*command, str(folder / "libcuda.so.1")])


def _nvml_names(library: Library) -> set[str]:
    """Functions that nvidia-ml-py knows, in place of a header that torch does not bring."""
    spec = importlib.util.find_spec("pynvml") if library.stem == "libnvidia-ml" else None
    if spec is None or spec.origin is None:
        return set()
    words = Path(spec.origin).read_text("utf-8").replace("'", '"').split('"')
    return {word for word in words if word.startswith("nvml") and word.isidentifier() and word[4:5].isupper()}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a compiler, our sources
    if done.returncode:
        for number in _NO_ROOM:
            if os.strerror(number) in done.stderr:
                raise OSError(number, os.strerror(number))
        first = "\n".join((done.stderr or done.stdout).splitlines()[:5])
        raise UnsupportedError(f"{command[0]} could not build the virtual GPU for this torch:\n{first}", hint=WITHOUT)
