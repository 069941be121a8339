"""Which torch is installed, for which CUDA, and where its headers and libraries lie; nothing here imports it.

The headers of CUDA's libraries come with torch's own pip dependencies: `nvidia/cu13/include` for CUDA 13, one folder
for each library (`nvidia/cublas/include`, ...) for CUDA 12.
"""

from __future__ import annotations

import ast
import importlib.util
import mmap
import re
from dataclasses import dataclass
from pathlib import Path

from dnnmem.estimator.errors import UnsupportedError

HEADERS = (
    "cuda.h", "cuda_runtime_api.h", "cublas_v2.h", "cublasLt.h", "cudnn.h", "nccl.h",
    "cufftXt.h", "cusolverDn.h", "cusparse.h",
)  # fmt: skip
"""What the stub libraries are compiled against."""

WITHOUT = "dnnmem profile --device fake needs no virtual GPU"
"""The way out where there can be none."""

_HINT = f"install torch for CUDA with pip, which brings the headers along; {WITHOUT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """An installed torch that is built for CUDA."""

    version: str
    """`2.9.1+cu128`."""
    cuda: str
    """`12.8`."""
    folder: Path
    """The package."""
    includes: tuple[Path, ...]
    """Folders that hold `HEADERS`, each in one of them."""
    libraries: tuple[Path, ...]
    """Folders of NVIDIA's libraries."""

    def header(self, name: str) -> Path:
        """The header called `name`; raises `UnsupportedError` where there is none."""
        for folder in self.includes:
            if (folder / name).is_file():
                return folder / name
        raise UnsupportedError(f"the virtual GPU needs {name}, which lies in none of {self._where()}", hint=_HINT)

    def _where(self) -> str:
        return ", ".join(map(str, self.includes)) or "the folders that torch's dependencies bring (there are none)"


def find_torch() -> Torch:
    """The installed torch. Raises `UnsupportedError` if there is none, it is not for CUDA, or headers are missing."""
    folder = _package("torch")
    if folder is None:
        raise UnsupportedError("torch is not installed", hint="pip install torch")
    facts = _version_facts(folder / "version.py")
    version, cuda = facts.get("__version__") or "?", facts.get("cuda")
    if not cuda:
        raise UnsupportedError(
            f"torch {version} is not built for CUDA", hint="install a CUDA build of the same version"
        )
    parts = _nvidia_folders(folder, cuda.split(".")[0])
    found = Torch(
        version=version,
        cuda=cuda,
        folder=folder,
        includes=tuple(p / "include" for p in parts if (p / "include").is_dir()),
        libraries=tuple(p / "lib" for p in parts if (p / "lib").is_dir()),
    )
    for name in HEADERS:
        found.header(name)
    return found


def kernel_targets(torch: Torch) -> tuple[int, ...]:
    """Compute capabilities that torch's kernels are compiled for, as CUDA writes them: 86 for 8.6. Empty if unknown.

    It is what `torch.cuda.get_arch_list` returns, a text inside libtorch_python.so.
    """
    path = torch.folder / "lib" / "libtorch_python.so"
    if not path.is_file():
        return ()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.search(rb"sm_\d+[a-z]?(?: (?:sm|compute)_\d+[a-z]?)*\0", data)
        return tuple(int(n) for n in re.findall(rb"sm_(\d+)", found[0])) if found else ()


def _package(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def _version_facts(path: Path) -> dict[str, str | None]:
    """Names that torch/version.py gives texts or None: `__version__`, `cuda`, `hip`."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (OSError, SyntaxError):
        return {}
    found: dict[str, str | None] = {}
    for node in tree.body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                found[target.id] = value.value if isinstance(value.value, str) else None
    return found


def _nvidia_folders(torch: Path, major: str) -> list[Path]:
    """Folders `nvidia/NAME` beside torch, those of another CUDA left out."""
    spec = importlib.util.find_spec("nvidia")
    places = [torch.parent / "nvidia", *map(Path, (spec.submodule_search_locations or ()) if spec else ())]
    found: dict[Path, None] = {}
    for place in places:
        for part in sorted(place.iterdir()) if place.is_dir() else ():
            other = part.name.startswith("cu") and part.name[2:].isdigit() and part.name[2:] != major
            if part.is_dir() and not other:
                found[part.resolve()] = None
    # with CUDA 13 the packages of CUDA 12 may still lie about: the folder of the wanted CUDA goes first
    return sorted(found, key=lambda part: part.name != f"cu{major}")
