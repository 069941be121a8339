"""The largest batch and the knee, for people.

batch 8    12.1 GiB    218 ms     36.7 samples/s
batch 52   78.0 GiB    1.31 s     39.7 samples/s     the largest that fits
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnnmem.estimator.units import format_bytes, format_number, format_seconds

if TYPE_CHECKING:
    from dnnmem.cli.batch_run import Batches


def batch_text(found: Batches) -> str:
    """The whole report."""
    lines = [f"{found.target} on {found.gpu}, of which PyTorch may reserve {format_bytes(found.limit_bytes)}"]
    if not found.largest:
        lines.append("NOTHING FITS: not even one sample; dnnmem recommend looks for what would")
    for p in found.points:
        marks = [
            *(["the largest that fits"] if p.batch == found.largest else []),
            *(["nine tenths of the best throughput"] if p.batch == found.knee else []),
        ]
        lines.append(
            f"batch {p.batch:>7,}  {format_bytes(p.reserved_bytes):>10}  {format_seconds(p.step_seconds):>9} a step  "
            f"{format_number(p.samples_per_second):>9} samples/s  {', '.join(marks)}".rstrip()
        )
    if found.confirmed:
        lines.append(f"run on a virtual GPU: {found.confirmed}")
    return "\n".join(lines) + "\n"
