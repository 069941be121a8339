"""`dnnmem devices`: the GPUs that `--gpu` knows."""

from __future__ import annotations


def devices() -> None:
    """List the GPUs that dnnmem knows."""
