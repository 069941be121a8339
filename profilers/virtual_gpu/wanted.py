"""Which functions of NVIDIA's libraries the installed torch asks for, and under which names it asks for the libraries.

They are read from torch itself, and from the libraries of NVIDIA that it loads and that are not replaced: that is what
makes the stub libraries fit any version of torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dnnmem.profilers.virtual_gpu.elf import Needs, needs
from dnnmem.profilers.virtual_gpu.installed import Torch
from dnnmem.profilers.virtual_gpu.libraries import LIBRARIES, Library

_CUDA_NAME = re.compile("|".join(f"(?:{library.prefix})" for library in LIBRARIES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of the stub libraries."""

    sonames: Mapping[str, str]
    """By stem, as the files ask for them."""
    symbols: frozenset[tuple[str, str]]
    """Name, and library if its version names one."""

    def soname(self, library: Library) -> str:
        """The name that `library` gets."""
        return self.sonames.get(library.stem, library.soname)

    def names(self, library: Library) -> set[str]:
        """Functions of `library` that are asked for."""
        own = self.soname(library)
        return {n for n, where in self.symbols if where == own or (not where and re.fullmatch(library.prefix, n))}


def find_wanted(torch: Torch) -> Wanted:
    """What the installed torch asks for, and what the libraries of NVIDIA do that it loads."""
    stems = {library.stem for library in LIBRARIES}
    queue = sorted((torch.folder / "lib").glob("*.so"))
    files = {f.name: f for folder in torch.libraries for f in folder.glob("lib*.so.*")}
    seen: set[Path] = set()
    sonames: dict[str, str] = {}
    symbols: set[tuple[str, str]] = set()
    while queue:
        path = queue.pop()
        found = needs(path) if path not in seen else None
        seen.add(path)
        for name in found.libraries if found else ():
            stem = name.split(".so")[0]
            if stem in stems:
                sonames[stem] = name
            elif name in files:
                queue.append(files[name])
        symbols |= _cuda_symbols(found)
    return Wanted(sonames=sonames, symbols=frozenset(symbols))


def _cuda_symbols(found: Needs | None) -> set[tuple[str, str]]:
    if found is None:
        return set()
    return {(name, where) for name, where in found.symbols if where.startswith("libcu") or _CUDA_NAME.fullmatch(name)}
