"""dnnmem: will a PyTorch model fit, how fast will it be, and which combination of techniques is best.

Names are loaded when they are first used, so that `import dnnmem` and `dnnmem --help` load neither torch nor numpy.

>>> import dnnmem
>>> dnnmem.DnnmemError.__module__
'dnnmem.estimator.errors'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnnmem.estimator.errors import DnnmemError
    from dnnmem.estimator.profile import Profile
    from dnnmem.estimator.trace import Trace
    from dnnmem.profilers.apply.api import apply
    from dnnmem.profilers.recommend import recommend

__all__ = ["DnnmemError", "Profile", "Trace", "__version__", "apply", "recommend"]

__version__ = "0.1.0"

_HOMES = {
    "DnnmemError": "dnnmem.estimator.errors",
    "Profile": "dnnmem.estimator.profile",
    "Trace": "dnnmem.estimator.trace",
    "apply": "dnnmem.profilers.apply.api",
    "recommend": "dnnmem.profilers.recommend",
}


def __getattr__(name: str) -> object:
    """Load a public name from its home (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dnnmem' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
