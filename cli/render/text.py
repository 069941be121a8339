"""Small things that every report does to words.

>>> shorten_left("transformer.h.0-11.attn.c_attn", 20), short_op("aten.mm.default")
('….h.0-11.attn.c_attn', 'aten.mm')
"""

from __future__ import annotations

from collections.abc import Mapping


def shorten_left(text: str, width: int) -> str:
    """`text` in at most `width` columns: what is cut is its beginning, since a path's end says most."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def shorten_right(text: str, width: int) -> str:
    """`text` in at most `width` columns, its end cut; nothing where there is no room to say anything.

    >>> shorten_right("float32[8192,50257]", 12), shorten_right("float32", 3)
    ('float32[819…', '')
    """
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if width >= 8 else ""


def printable(text: str) -> str:
    r"""`text` on one line, without what moves a terminal's cursor or colours it.

    >>> printable("fc\n::error::\x1b[31m")
    'fc\\n::error::\\x1b[31m'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def short_op(name: str) -> str:
    """An operator's name without the overload that says nothing."""
    return name.removesuffix(".default")


def batch_words(batch: Mapping[str, int | str]) -> str:
    """A batch in a line.

    >>> batch_words({"batch_size": 8, "seq_len": 1024})
    'batch_size 8, seq_len 1024'
    """
    return ", ".join(f"{name} {value}" for name, value in batch.items())


def place(module: str) -> str:
    """A module's path in a sentence.

    >>> place("h.0.attn"), place("<loss>")
    ('h.0.attn', 'code outside of modules, such as the loss')
    """
    return _PLACES.get(module, module)


_PLACES = {
    "": "the model itself",
    "<loss>": "code outside of modules, such as the loss",
    "<optimizer>": "the optimizer",
}
