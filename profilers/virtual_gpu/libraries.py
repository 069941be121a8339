"""The stub libraries: which C files each is made of, and which functions of NVIDIA's library it has to have.

A function has to be there if the installed torch, or a library that torch loads, asks for it, or if the public header
declares it: another extension may call it. Which of them do something is written in C; the rest is generated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dnnmem.profilers.virtual_gpu.elf import Needs, needs
from dnnmem.profilers.virtual_gpu.installed import Torch
from dnnmem.profilers.virtual_gpu.reviewed import REVIEWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """One stub library."""

    stem: str
    """Its name without the version: `libcudart`."""
    soname: str
    """The name under which torch asks for it; where torch names another version, that one counts."""
    sources: tuple[str, ...]
    """C files beside this one."""
    prefix: str
    """Pattern of the names that belong to it."""
    headers: tuple[str, ...]
    """Public headers that declare its functions."""


LIBRARIES = (
    Library(
        stem="libcuda",
        soname="libcuda.so.1",
        sources=("state.c", "values.c", "driver.c", "driver_work.c"),
        prefix=r"cu(?!File)[A-Z]\w*",
        headers=("cuda.h",),
    ),
    Library(
        stem="libcudart",
        soname="libcudart.so.13",
        sources=("runtime.c",),
        prefix=r"(__)?cuda[A-Z]\w*",
        headers=("cuda_runtime_api.h",),
    ),
    Library(
        stem="libcublas",
        soname="libcublas.so.13",
        sources=("blas.c",),
        prefix=r"cublas(?!Lt)[A-Z]\w*",
        headers=("cublas_api.h", "cublas_v2.h"),
    ),
    Library(
        stem="libcublasLt",
        soname="libcublasLt.so.13",
        sources=("blas_lt.c",),
        prefix=r"cublasLt\w+",
        headers=("cublasLt.h",),
    ),
    Library(
        stem="libcudnn",
        soname="libcudnn.so.9",
        sources=("dnn.c",),
        prefix=r"cudnn[A-Z]\w*",
        headers=("cudnn_ops.h", "cudnn_graph.h", "cudnn_cnn.h", "cudnn_adv.h"),
    ),
    Library(
        stem="libnccl", soname="libnccl.so.2", sources=("collectives.c",), prefix=r"nccl[A-Z]\w*", headers=("nccl.h",)
    ),
    Library(stem="libnvidia-ml", soname="libnvidia-ml.so.1", sources=("nvml.c",), prefix=r"nvml[A-Z]\w*", headers=()),
)
"""In this order: the first one holds the state that all others use."""


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


_CUDA_NAME = re.compile("|".join(f"(?:{library.prefix})" for library in LIBRARIES))
_DECLARED = re.compile(r"\b(\w+)\s*\(")


def declared(library: Library, torch: Torch) -> set[str]:
    """Functions of `library` that its public headers declare."""
    found: set[str] = set()
    for header in library.headers:
        for path in _versions_of(torch.header(header)):
            text = re.sub(r"/\*.*?\*/|//[^\n]*|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", " ", path.read_text("latin-1"), flags=re.S | re.M)
            found |= {n for n in _DECLARED.findall(text) if re.fullmatch(library.prefix, n) and not n.endswith("_t")}
    return found


def _versions_of(header: Path) -> list[Path]:
    """A header, and the one of the same name and version that it may be a link to: cudnn_ops.h, cudnn_ops_v9.h."""
    return [header, *sorted(header.parent.glob(f"{header.stem}_v[0-9]*.h"))]


def newest_versions(torch: Torch) -> dict[str, str]:
    """Plain names of driver functions and the newest version that cuda.h gives them: cuMemAlloc, cuMemAlloc_v2."""
    text = torch.header("cuda.h").read_text("latin-1")
    pattern = r"^[ \t]*#[ \t]*define[ \t]+(cu[A-Z]\w*)[ \t]+(?:__CUDA_API_PT\w+\()?(cu[A-Z]\w*)\)?"
    found: dict[str, str] = {}
    for name, version in re.findall(pattern, text, flags=re.M):
        found.setdefault(name, version)
    return found


def stubs_text(library: Library, names: Iterable[str]) -> str:
    """C of the functions `names` of `library`, which nobody has written by hand."""
    bodies = {
        "quiet": "return 0;",
        "computes": "vg_ran(); return 0;",
        "unreviewed": 'return vg_unreviewed("{name}");',
    }
    if library.stem == "libnvidia-ml":
        bodies["unreviewed"] = "return 3;"  # NVML_ERROR_NOT_SUPPORTED, which callers expect
    lines = ["/* generated */", "int vg_unreviewed(const char *);", "void vg_ran(void);"]
    for name in sorted(names):
        body = bodies[REVIEWS[library.stem].kind(name)].format(name=name)
        lines.append(f"int {name}(void) {{ {body} }}")
    return "\n".join(lines) + "\n"


def entry_points_text(names: Iterable[str], newest: Mapping[str, str]) -> str:
    """C of `vg_entry_point`: the address of a driver function by its plain name, in its newest version."""
    known = set(names)
    table = {name: newest.get(name, name) for name in known | set(newest)}
    rows = sorted((name, target) for name, target in table.items() if target in known)
    lines = ["#include <string.h>", *(f"extern int {target}();" for target in sorted({t for _, t in rows}))]
    lines += ["static const struct { const char *name; void *function; } table[] = {"]
    lines += [f'    {{"{name}", (void *){target}}},' for name, target in rows]
    lines += ["};", "void *vg_entry_point(const char *name)", "{"]
    lines += ["    for (unsigned i = 0; i < sizeof table / sizeof *table; i++)"]
    lines += ["        if (!strcmp(table[i].name, name)) return table[i].function;", "    return 0;", "}"]
    return "\n".join(lines) + "\n"
