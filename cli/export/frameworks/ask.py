"""What an export is asked for, and what it answers: text for a framework, and what of the plan it does not say.

>>> from dnnmem.estimator.plan import Mesh, Remat
>>> ask = Ask(plan=Plan(mesh=Mesh(dp_replicate=16), remat=Remat(policy="full")), gpus_per_node=8)
>>> ask.nodes, ask.ranks_per_node
(2, 8)
>>> ask.fragment(["x = 1"], said={"mesh"}).left_out
('remat.policy=full',)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from dnnmem import __version__
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_text import settings
from dnnmem.profilers.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A piece of a configuration."""

    text: str
    """The whole of the file."""
    left_out: tuple[str, ...]
    """Settings of the plan that it does not say, as `--set` would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A plan and what is known of its model and machine."""

    plan: Plan
    """The choices."""
    gpus_per_node: int = 8
    """GPUs of one machine."""
    blocks: tuple[str, ...] = ()
    """Classes of the model's repeated blocks; empty = not known."""
    source: str = ""
    """Where the plan is from, for the provenance."""
    request: Request | None = None
    """The model that was named; None = none was."""
    param_bytes: int | None = None
    """Of all its parameters; None = not known."""

    @property
    def world_size(self) -> int:
        """GPUs of the job."""
        return self.plan.mesh.world_size

    @property
    def nodes(self) -> int:
        """Machines of the job."""
        return -(-self.world_size // self.gpus_per_node)

    @property
    def ranks_per_node(self) -> int:
        """Processes on each."""
        return self.world_size // self.nodes

    @property
    def mixed(self) -> str | None:
        """`bf16` or `fp16` where the plan computes in less than it keeps, `no` in float32; None = not said."""
        precision = self.plan.precision
        if precision.compute == "bfloat16":
            return "bf16" if precision.param == "float32" else None
        named = {"bf16_amp": "bf16", "fp16_amp": "fp16", "float32": "no", "tf32": "no"}
        return named.get(precision.compute or "")

    @property
    def global_batch(self) -> int | None:
        """Samples of an optimizer step; None = the micro-batch is not in the plan."""
        batch = self.plan.batch
        return batch.micro_batch and batch.micro_batch * batch.accumulation * self.plan.mesh.data_ranks

    def provenance(self, left_out: Iterable[str]) -> list[str]:
        """Lines that say who wrote this from what, and what is missing."""
        chosen = " ".join(settings(self.plan)) or "nothing changed"
        return [
            f"written by dnnmem {__version__}{f' from {self.source}' if self.source else ''}",
            f"plan: {chosen}",
            *(f"NOT said here: {setting}" for setting in left_out),
        ]

    def fragment(self, lines: Iterable[str], said: Collection[str], comment: str = "#") -> Fragment:
        """Lines under their provenance.

        `said` names the settings that the lines express, `part` or `part.name`.
        """
        left = self.left_out(said)
        head = [f"{comment} {line}" for line in self.provenance(left)]
        return Fragment(text="\n".join([*head, *lines]) + "\n", left_out=left)

    def left_out(self, said: Collection[str]) -> tuple[str, ...]:
        """Settings of the plan that `said` does not name."""
        return tuple(s for s in settings(self.plan) if not {s.partition("=")[0], s.partition(".")[0]} & set(said))
