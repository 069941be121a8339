"""The reader of ELF files, held against libraries whose needs are known."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dnnmem.profilers.virtual_gpu.elf import defined, needs

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="ELF files are those of Linux")


@on_linux
def test_what_a_library_needs_names_the_library_that_has_it():
    # GIVEN Python's own math module, which is linked with the C library
    file = getattr(math, "__file__", None)
    path = Path(file) if file else next(Path(sys.executable).resolve().parent.parent.rglob("lib-dynload/*.so"))
    # WHEN its needs are read
    found = needs(path)
    # THEN the interpreter's functions have no version, and the C library's carry its name
    assert found is not None
    assert "libc.so.6" in found.libraries
    assert any(name.startswith("Py") and not where for name, where in found.symbols)
    assert all(where in {"", *found.libraries} for _, where in found.symbols)


def test_what_is_no_elf_file_has_no_needs(tmp_path):
    # GIVEN a linker script, as some systems have under the name of a library
    script = tmp_path / "libc.so"
    script.write_text("GROUP ( /lib/libc.so.6 )")
    # WHEN THEN
    assert needs(script) is None


@on_linux
@needs_compiler
def test_only_global_symbols_of_an_object_are_defined(tmp_path):
    # GIVEN an object with a global, a local and an undefined function
    source, made = tmp_path / "a.c", tmp_path / "a.o"
    source.write_text("int other(void); static int own(void) { return other(); } int shown(void) { return own(); }")
    subprocess.run(["cc", "-O0", "-c", str(source), "-o", str(made)], check=True)  # noqa: S607 - the machine's compiler
    # WHEN THEN
    assert defined(made) == {"shown"}
