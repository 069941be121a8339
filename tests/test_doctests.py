"""Every example in a docstring is true."""

from __future__ import annotations

import doctest
import importlib
from typing import Any


def test_examples_of(module: Any) -> None:
    result = doctest.testmod(importlib.import_module(module.name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
