"""What a search may choose: one file a field of a plan, each a table of techniques; a file that is added is searched.

    sharding   none | ddp | zero1 | zero2 | zero3 | hsdp          a plan takes one of each file, in the order of `ORDER`
    batch      8 x 1 | 4 x 2 | 2 x 4 | 1 x 8
    remat      none | full | every 2nd | selective

A file has `ORDER`, an integer, and `techniques(scope, plan)`: what may be added to a plan that the files before it have
made; the first is what changes least. Most are rows of settings and words. Where it does not offer all of them always,
`NAMES` says what else there is; `GROUP` is the file whose name stands for this one's too.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType

from dnnmem.estimator.cluster import Cluster
from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.plan import Plan
from dnnmem.estimator.plan_changes import Changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """One choice of a file."""

    name: str
    """What `--only` and `--without` call it; empty = the plain step, which is no technique."""
    settings: tuple[str, ...] = ()
    """What it sets, as `--set` has it."""
    words: str = ""
    """What it is, in the field's words; empty = not worth a word."""
    why: str = ""
    """What it does for a step, to end a sentence: `splits what rests between steps over 8 GPUs`."""
    alters: str = ""
    """How it changes the mathematics of training; empty = it does not."""
    planned_share: float = 0.0
    """Above 0: the rematerialization is planned for this share of the memory that is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a search may use."""

    cluster: Cluster
    """The machine."""
    gpus: tuple[int, ...]
    """How many of its GPUs a plan may use."""
    global_batch: int
    """Samples of a step."""
    micro_batches: tuple[int, ...]
    """Those that can be priced."""
    blocks: int
    """Blocks of the model's longest list; 0 = it has none."""
    fields: frozenset[str]
    """Fields of a plan that passes predict."""
    tensor: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Degrees of tensor parallelism that divide the model, each with the settings that go with it."""
    context: tuple[int, ...] = ()
    """Degrees of context parallelism that divide its sequences."""
    experts: tuple[int, ...] = ()
    """Degrees of expert parallelism that divide the experts of its layers."""
    computes: str = "float32"
    """What the step was recorded in, in the words of `Precision.compute`."""
    unreached: bool = False
    """Whether no gradient reaches some trainable parameter, which PyTorch's replicas wait for."""
    sparse: bool = False
    """Whether some gradients are sparse, which ranks cannot send each other."""
    computes_again: bool = False
    """Whether the model checkpoints parts of itself already."""
    logits_share: float = 0.0
    """Log-probabilities of the loss over the step's peak, in bytes each (`loss_site.logits_share`)."""
    allow: frozenset[str] = frozenset()
    """Files whose techniques change training and are allowed nevertheless."""
    only: frozenset[str] = frozenset()
    """Techniques, or files, that alone are used; empty = all."""
    without: frozenset[str] = frozenset()
    """Techniques, or files, that are left out."""
    max_techniques: int | None = None
    """Most techniques of a plan; None = any number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A plan of the space."""

    plan: Plan
    """The plan."""
    techniques: tuple[Technique, ...] = field(default=())
    """What it is made of, in the order of the files; those that change and tell nothing are left out."""

    @property
    def count(self) -> int:
        """How many techniques it takes."""
        return sum(1 for technique in self.techniques if technique.name)

    @property
    def planned_share(self) -> float:
        """That of its techniques; 0 = nothing is planned."""
        return max((technique.planned_share for technique in self.techniques), default=0.0)

    @property
    def alters(self) -> tuple[str, ...]:
        """What of it changes training."""
        return tuple(technique.alters for technique in self.techniques if technique.alters)


_PLAIN = Technique(name="")

Table = Callable[[Scope, Plan], Sequence[Technique]]


@cache
def tables() -> dict[str, Table]:
    """`techniques` of each file by the file's name, in their order."""
    return {_name(module): module.techniques for module in _modules()}


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


@cache
def _modules() -> tuple[ModuleType, ...]:
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return tuple(sorted(modules, key=lambda module: (module.ORDER, module.__name__)))


def choices(scope: Scope) -> tuple[Choice, ...]:
    """All plans of the space, those of fewest changes first. Raises `UsageError` for a name that means nothing.

    Files only say what goes together; whether a plan as a whole is one, `plan.check` says.
    """
    found: list[Choice] = [Choice(plan=Plan())]
    known = {name for module in _modules() for name in getattr(module, "NAMES", ())}
    changes = Changes()

    def extended(choice: Choice, files: set[str], table: Table) -> Iterable[Choice]:
        for technique in table(scope, choice.plan):
            known.add(technique.name)
            if technique.name and not _is_wanted(technique, files, scope):
                continue
            if technique == _PLAIN:
                yield choice
            else:
                plan = changes.made(choice.plan, technique.settings)
                yield Choice(plan=plan, techniques=(*choice.techniques, technique))

    for module in _modules():
        files = {_name(module), getattr(module, "GROUP", _name(module))}
        found = [made for choice in found for made in extended(choice, files, module.techniques)]
        if scope.max_techniques is not None:
            found = [choice for choice in found if choice.count <= scope.max_techniques]
    _check_names(scope, known | set(tables()))
    return tuple(sorted(found, key=lambda choice: choice.count))


def _is_wanted(technique: Technique, files: set[str], scope: Scope) -> bool:
    names = {technique.name, *files}
    if technique.alters and not names & (scope.allow | scope.only):
        return False
    return not names & scope.without and (not scope.only or bool(names & scope.only))


def _check_names(scope: Scope, known: set[str]) -> None:
    wrong = sorted((scope.only | scope.without | scope.allow) - known)
    if wrong:
        raise UsageError(f"{wrong[0]} is no technique of this search", hint=f"known: {', '.join(sorted(known - {''}))}")
