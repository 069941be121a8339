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
    from dnnmem.cli.api.check import check
    from dnnmem.cli.api.diff import diff
    from dnnmem.cli.api.estimate import estimate
    from dnnmem.cli.api.profile import profile
    from dnnmem.cli.api.recommend import recommend
    from dnnmem.estimator.errors import DnnmemError
    from dnnmem.estimator.profile import Profile
    from dnnmem.estimator.trace import Trace
    from dnnmem.profilers.apply.api import apply
    from dnnmem.profilers.apply.pipeline_api import pipeline

__all__ = [
    "DnnmemError", "Profile", "Trace", "__version__", "apply", "check", "diff", "estimate", "pipeline",
    "profile", "recommend",
]  # fmt: skip

__version__ = "0.1.0"

_HOMES = {
    "DnnmemError": "dnnmem.estimator.errors",
    "Profile": "dnnmem.estimator.profile",
    "Trace": "dnnmem.estimator.trace",
    "apply": "dnnmem.profilers.apply.api",
    "check": "dnnmem.cli.api.check",
    "diff": "dnnmem.cli.api.diff",
    "estimate": "dnnmem.cli.api.estimate",
    "pipeline": "dnnmem.profilers.apply.pipeline_api",
    "profile": "dnnmem.cli.api.profile",
    "recommend": "dnnmem.cli.api.recommend",
}


def __getattr__(name: str) -> object:
    """Load a public name from its home (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dnnmem' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
