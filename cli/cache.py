"""Where dnnmem keeps what it builds: one folder, that a person can name.

    DNNMEM_CACHE  >  XDG_CACHE_HOME/dnnmem  >  ~/.cache/dnnmem

>>> cache_folder({"XDG_CACHE_HOME": "/var/cache/me"})
PosixPath('/var/cache/me/dnnmem')
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The folder that `environ` names; it need not exist."""
    if own := environ.get("DNNMEM_CACHE", "").strip():
        return Path(own).expanduser().absolute()
    everybodys = environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(everybodys) if everybodys else Path.home() / ".cache") / "dnnmem"
