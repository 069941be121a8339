"""Where dnnmem keeps what it builds: one folder, that a person can name.

    DNNMEM_CACHE  >  XDG_CACHE_HOME/dnnmem  >  ~/.cache/dnnmem

>>> cache_folder({"XDG_CACHE_HOME": "/var/cache/me"})
PosixPath('/var/cache/me/dnnmem')
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dnnmem.estimator.errors import UnsupportedError


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The folder that `environ` names; it need not exist. Raises `UnsupportedError` where there is no home."""
    if own := environ.get("DNNMEM_CACHE", "").strip():
        return Path(own).expanduser().absolute()
    everybodys = environ.get("XDG_CACHE_HOME", "").strip()
    if everybodys:
        return Path(everybodys) / "dnnmem"
    try:
        return Path.home() / ".cache" / "dnnmem"
    except RuntimeError as error:
        raise UnsupportedError(
            "this user has no home folder to keep things in", hint="set DNNMEM_CACHE to a folder"
        ) from error
