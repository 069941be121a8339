"""The layers of a profile as CSV: one line a module, nothing folded, numbers in bytes, flops and seconds.

Columns are the fields of `estimator.profile.Layer`; what is not known is an empty cell, never 0.

>>> print(to_csv([Layer(module="fc", type="Linear", param_bytes=8)]).splitlines()[1])
fc,Linear,,8,0,0,0,0,0,0,0,,
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, fields

from dnnmem.estimator.profile import Layer

COLUMNS = tuple(field.name for field in fields(Layer))
"""The header line."""


def to_csv(layers: Sequence[Layer]) -> str:
    """The table as text, lines ended by a newline."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(layer) for layer in layers)
    return text.getvalue()
