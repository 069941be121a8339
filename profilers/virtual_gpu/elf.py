"""What a shared library needs of others, and what an object file defines: the tables of an ELF file, read in Python.

The tools that print these (`nm`, `readelf`) are not on every machine. Only 64-bit little-endian files are read, which
is what torch is built for on Linux. System V ABI, chapter "Object files"; symbol versions as in GNU's extension to it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SYMTAB, _DYNAMIC, _DYNSYM, _VERNEED, _VERSYM = 2, 6, 11, 0x6FFFFFFE, 0x6FFFFFFF
_NEEDED = 1
_UNDEFINED = 0
_LOCAL = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What one library asks of others."""

    libraries: tuple[str, ...]
    """Names of the libraries that it is linked with: `libcudart.so.13`."""
    symbols: frozenset[tuple[str, str]]
    """Each undefined symbol, and the library that its version names; empty where it has no version."""


@dataclass(frozen=True, slots=True)
class _Section:
    kind: int
    offset: int
    nbytes: int
    link: int
    """Index of the section that belongs to it: the strings of symbols."""


def needs(path: Path) -> Needs | None:
    """What the library at `path` needs; None if it is no ELF file of this kind."""
    with path.open("rb") as file:
        if file.read(6) != b"\x7fELF\x02\x01":
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            sections = _sections(data)
            return Needs(libraries=tuple(_needed(data, sections)), symbols=frozenset(_undefined(data, sections)))


def defined(path: Path) -> frozenset[str]:
    """Names of the global symbols that the object file at `path` defines."""
    data = path.read_bytes()
    sections = _sections(data)
    return frozenset(
        name
        for section in sections
        if section.kind == _SYMTAB
        for name, info, place in _symbols(data, section, sections[section.link])
        if place != _UNDEFINED and info >> 4 != _LOCAL and name
    )


def _sections(data: bytes | mmap.mmap) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    found = []
    for index in range(count):
        _, kind, _, _, offset, nbytes, link = struct.unpack_from("<IIQQQQI", data, table + index * size)
        found.append(_Section(kind, offset, nbytes, link))
    return found


def _text(data: bytes | mmap.mmap, at: int) -> str:
    return data[at : data.find(b"\0", at)].decode("latin-1")


def _symbols(data: bytes | mmap.mmap, table: _Section, strings: _Section) -> Iterator[tuple[str, int, int]]:
    """Name, type and section of each symbol."""
    raw = data[table.offset : table.offset + table.nbytes]
    for name, info, _, place, _, _ in struct.iter_unpack("<IBBHQQ", raw):
        yield _text(data, strings.offset + name), info, place


def _needed(data: bytes | mmap.mmap, sections: list[_Section]) -> Iterator[str]:
    for section in sections:
        if section.kind == _DYNAMIC:
            strings = sections[section.link]
            for tag, value in struct.iter_unpack("<qQ", data[section.offset : section.offset + section.nbytes]):
                if tag == _NEEDED:
                    yield _text(data, strings.offset + value)


def _undefined(data: bytes | mmap.mmap, sections: list[_Section]) -> Iterator[tuple[str, str]]:
    libraries = _version_libraries(data, sections)
    versions = next((s for s in sections if s.kind == _VERSYM), None)
    for section in sections:
        if section.kind != _DYNSYM:
            continue
        strings = sections[section.link]
        raw = data[section.offset : section.offset + section.nbytes]
        for index, (name, _, _, place, _, _) in enumerate(struct.iter_unpack("<IBBHQQ", raw)):
            if place == _UNDEFINED and name:
                version = struct.unpack_from("<H", data, versions.offset + 2 * index)[0] if versions else 0
                yield _text(data, strings.offset + name), libraries.get(version & 0x7FFF, "")


def _version_libraries(data: bytes | mmap.mmap, sections: list[_Section]) -> dict[int, str]:
    """The library that each version index of the symbols belongs to."""
    found: dict[int, str] = {}
    for section in sections:
        if section.kind != _VERNEED:
            continue
        strings, at, more = sections[section.link].offset, section.offset, 1
        while more:
            _, count, file, first, more = struct.unpack_from("<HHIII", data, at)
            entry = at + first
            for _ in range(count):
                _, _, index, _, further = struct.unpack_from("<IHHII", data, entry)
                found[index] = _text(data, strings + file)
                entry += further
            at += more
    return found
