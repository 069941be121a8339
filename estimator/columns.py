"""Columns of a saved file, and every check that a stranger's file needs: right type, right length, numbers in range.

`Table` numbers strings and module paths on the way out. `Reader` is one JSON object on the way in: what is wrong with a
field is a `UsageError` that names the file, the field and the value.

>>> table = Table()
>>> table.string("aten.mm"), table.path(("h", "0")), table.string("h"), table.path(("h", "0")), list(table.strings)
(0, 0, 1, 0, ['aten.mm', 'h', '0'])
>>> Reader("a.gz", {"ops": {"flops": [1, -2]}}).child("ops").ints("flops")
Traceback (most recent call last):
    ...
dnnmem.estimator.errors.UsageError: a.gz: field ops.flops has -2 at 1; it must lie between 0 and 9007199254740991
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from dnnmem.estimator.errors import UsageError

T = TypeVar("T")

MAX_INT = 2**53 - 1
"""Largest whole number that every JSON reader keeps exact."""
MAX_NUMBER = 2**64
"""Largest number among arguments and facts: seeds have 64 bits."""
_SCALARS = (str, int, float, type(None))


@dataclass(frozen=True, slots=True)
class Table:
    """Strings and paths, numbered in order of first use; a path is a list of string numbers."""

    strings: dict[str, int] = field(default_factory=dict)
    """Number of each string."""
    paths: dict[tuple[str, ...], int] = field(default_factory=dict)
    """Number of each module path."""

    def string(self, text: str) -> int:
        """The number of `text`."""
        return self.strings.setdefault(text, len(self.strings))

    def path(self, path: tuple[str, ...]) -> int:
        """The number of `path`."""
        for part in path:
            self.string(part)
        return self.paths.setdefault(path, len(self.paths))


class Reader(NamedTuple):
    """A JSON object of a file, with its place for messages."""

    file: str
    """The file as the user named it."""
    data: object
    """Parsed JSON."""
    prefix: str = ""
    """Where `data` stands in the file: `ops.`; empty for the whole."""

    def error(self, name: str, what: str) -> UsageError:
        """An error of field `name` for the caller to raise."""
        return UsageError(
            f"{self.file}: field {self.prefix}{name} {what}",
            hint="the file is damaged or was not written by dnnmem; profile again to write it anew",
        )

    def get(self, name: str) -> object:
        """The value of a field, which must be there."""
        if not isinstance(self.data, dict):
            where = self.prefix.rstrip(".") or "(all)"
            raise Reader(self.file, None).error(where, f"is {describe(self.data)}; it must be an object")
        if name not in self.data:
            raise self.error(name, "is missing")
        value: object = self.data[name]
        return value

    def has(self, name: str) -> bool:
        """True if the field is there; those of later versions of the same format may be missing."""
        return isinstance(self.data, dict) and name in self.data

    def child(self, name: str) -> Reader:
        """The object in a field."""
        value = self.get(name)
        if not isinstance(value, dict):
            raise self.error(name, f"is {describe(value)}; it must be an object")
        return Reader(self.file, value, f"{self.prefix}{name}.")

    def column(self, name: str, types: tuple[type, ...], length: int | None = None) -> list[Any]:
        """A list whose entries have one of `types` exactly, `length` long if that is given."""
        values = self.get(name)
        if not isinstance(values, list):
            raise self.error(name, f"is {describe(values)}; it must be a list")
        if length is not None and len(values) != length:
            raise self.error(name, f"has {len(values)} entries; it must have {length}, as its neighbours do")
        if not set(map(type, values)) <= set(types):
            at = next(i for i, value in enumerate(values) if type(value) not in types)
            wanted = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise self.error(name, f"has {describe(values[at])} at {at}; it must be {wanted}")
        self._check_texts(name, values if str in types else ())
        return values

    def ints(self, name: str, length: int | None = None, low: int = 0, high: int = MAX_INT) -> list[int]:
        """A list of whole numbers from `low` to `high`."""
        values: list[int] = self.column(name, (int,), length)
        if values and not (low <= min(values) and max(values) <= high):
            at = next(i for i, value in enumerate(values) if not low <= value <= high)
            raise self.error(name, f"has {describe(values[at])} at {at}; it must lie between {low} and {high}")
        return values

    def seconds(self, name: str, length: int | None = None) -> list[float | None]:
        """A list of seconds, null where they are not known."""
        values: list[float | None] = self.column(name, (float, int, type(None)), length)
        for at, value in enumerate(values):
            if value is not None and not 0 <= value <= MAX_INT:
                raise self.error(name, f"has {describe(value)} at {at}; seconds are finite and not negative")
        return [None if value is None else float(value) for value in values]

    def refs(self, name: str, table: Sequence[T], length: int | None = None) -> list[T]:
        """A list of entries of `table`, stored as their numbers."""
        numbers = self.ints(name, length)
        if numbers and not table:
            raise self.error(name, f"has {numbers[0]} at 0, but what it counts is empty")
        return [table[i] for i in self.ints(name, high=len(table) - 1)]

    def optional(self, name: str, low: int = 0) -> int | None:
        """A whole number or null."""
        value = self.get(name)
        if value is None:
            return None
        return Reader(self.file, {name: [value]}, self.prefix).ints(name, low=low)[0]

    def text(self, name: str) -> str:
        """A string."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.error(name, f"is {describe(value)}; it must be a string")
        self._check_texts(name, (value,))
        return value

    def mapping(self, name: str, *types: type) -> dict[str, Any]:
        """An object whose values have one of `types`; numbers fit 64 bits."""
        items: dict[str, Any] = self.child(name).data  # type: ignore[assignment]  # child checked it
        self._check_texts(name, items)
        for key, value in items.items():
            if type(value) not in types or (not isinstance(value, str) and not abs(value) <= MAX_NUMBER):
                wanted = " or ".join(t.__name__ for t in types)
                raise self.error(f"{name}.{key:.60}", f"is {describe(value)}; it must be {wanted} of 64 bits or fewer")
        self._check_texts(name, (value for value in items.values() if isinstance(value, str)))
        return dict(items)

    def _check_texts(self, name: str, texts: Iterable[str]) -> None:
        """Half a surrogate pair would fail wherever it is printed."""
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:
            raise self.error(name, "has text that is not Unicode") from error


def split(values: Iterable[T], counts: Iterable[int]) -> list[tuple[T, ...]]:
    """Cut a flat column into tuples of the given lengths."""
    rest = iter(values)
    return [tuple(islice(rest, count)) for count in counts]


def nested(reader: Reader, name: str, length: int, read: Callable[[Reader, int], Sequence[T]]) -> list[tuple[T, ...]]:
    """A column of lists: `count` of each, beside flat columns that `read` turns into so many items."""
    inner = reader.child(name)
    counts = inner.ints("count", length)
    return split(read(inner, sum(counts)), counts)


def describe(value: object) -> str:
    """A value for a message: short, and never deep."""
    if isinstance(value, _SCALARS):
        return f"{value!r:.60}"
    return f"a {type(value).__name__}"
