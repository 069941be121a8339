"""What schedules ask of stages, micro-batches and chunks; each error states the rule."""

from __future__ import annotations

from dnnmem.estimator.errors import UsageError


def one_chunk(schedule: str, chunks: int) -> None:
    """Raise `UsageError` for more than one chunk a rank."""
    if chunks != 1:
        raise UsageError(
            f"{schedule} has 1 chunk a rank, not {chunks}", hint="pipeline.schedule=interleaved has several"
        )


def two_chunks(schedule: str, chunks: int) -> None:
    """Raise `UsageError` for other than two chunks a rank."""
    if chunks != 2:
        raise UsageError(f"{schedule} has 2 chunks a rank, not {chunks}", hint="--set pipeline.chunks=2")


def multiple(schedule: str, microbatches: int, ranks: int) -> None:
    """Raise `UsageError` unless micro-batches are a multiple of the ranks."""
    if microbatches % ranks:
        raise UsageError(
            f"{schedule} runs {ranks} stages on {microbatches} micro-batches; they must be a multiple of the stages",
            hint="change batch.accumulation or mesh.pp",
        )


def enough(schedule: str, microbatches: int, least: int) -> None:
    """Raise `UsageError` for fewer micro-batches than fill the pipeline."""
    if microbatches < least:
        raise UsageError(
            f"{schedule} needs {least} micro-batches or more, not {microbatches}",
            hint=f"--set batch.accumulation={least}, or a lower mesh.pp",
        )


def even(schedule: str, ranks: int) -> None:
    """Raise `UsageError` for an odd number of ranks above 1."""
    if ranks % 2:
        raise UsageError(f"{schedule} needs an even number of stages, not {ranks}", hint="change mesh.pp")
