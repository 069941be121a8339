r"""Writes the C of all functions that nobody has written by hand, and the table by which the driver's are found.

A function has to be there if the installed torch asks for it (`wanted`), or if a public header declares it: another
extension may call it. What `reviewed` does not list ends the process with its name.

>>> from dnnmem.profilers.virtual_gpu.libraries import LIBRARIES
>>> names = ["cublasLtMatmul", "cublasLtMatmulDescSetAttribute", "cublasLtNew"]
>>> print(stubs_text(LIBRARIES[3], names).split("\n", 3)[3], end="")
int cublasLtMatmul(void) { vg_ran(); return 0; }
int cublasLtMatmulDescSetAttribute(void) { return 0; }
int cublasLtNew(void) { return vg_unreviewed("cublasLtNew"); }
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dnnmem.profilers.virtual_gpu.installed import Torch
from dnnmem.profilers.virtual_gpu.libraries import Library
from dnnmem.profilers.virtual_gpu.reviewed import REVIEWS

_NO_CODE = re.compile(r"/\*.*?\*/|//[^\n]*|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.DOTALL | re.MULTILINE)
"""Comments and lines of the preprocessor."""

_DECLARED = re.compile(r"\b(\w+)\s*\(")


def declared(library: Library, torch: Torch) -> set[str]:
    """Functions of `library` that its public headers declare."""
    found: set[str] = set()
    for header in library.headers:
        for path in _versions_of(torch.header(header)):
            text = _NO_CODE.sub(" ", path.read_text("latin-1"))
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
    for name, version in re.findall(pattern, text, flags=re.MULTILINE):
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
