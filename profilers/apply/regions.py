"""Runs of blocks that a model computes again in its backward pass, around calls that its own code makes.

    the model's code    x = block0(x)         x = block1(x)  x = block2(x)         x = block3(x)
    regions 0-2(1-2)    [ opens               [ opens                ] ] close
    backward            ... block 2 needs what it saved: 0, 1, 2 run again from the input of 0

A region is torch's checkpoint without re-entrance, held open over several calls; torch keeps it as a generator for its
own composable checkpoint. What runs again are the blocks alone: each call's tensors are those it was called with, or
outputs of blocks before it in the region. So a block's output has to be the next one's input as it is. Under
torch.compile whole blocks are compiled with their repetition, which the compiler knows. Longer runs, and blocks of
which some ops are kept, run op by op, so that they save the same both times; a loop that calls them is not compiled.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import _checkpoint_without_reentrant_generator, checkpoint, set_checkpoint_early_stop

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.segments import Run

Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]
"""Makes what a region's first computation runs in, and what its second one does."""
_Place = tuple[int, int]
"""(block, number of one of its outputs)"""


def no_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Nothing to run in."""
    return nullcontext(), nullcontext()


@dataclass(frozen=True, slots=True)
class _Output:
    """Stands for what a block of the region made."""

    place: _Place


@dataclass(slots=True, eq=False)
class _Region:
    """A run that is being computed."""

    run: Run
    generator: Generator[None, None, None] | None = None
    calls: list[tuple[list[Any], Any]] = field(default_factory=list)
    """Of each block: leaves of its arguments, and how they are put together; the first one's are given anew."""
    made: list[tuple[weakref.ref[Tensor], _Place]] = field(default_factory=list)
    """Outputs so far."""
    given: set[int] = field(default_factory=set)
    """Identities of the tensors that the first block was called with."""


@dataclass(slots=True, eq=False)
class _Regions:
    """The blocks of a model and what is open."""

    names: Callable[[int], str]
    forwards: Callable[[int], Callable[..., Any]]
    runs: Sequence[Run]
    contexts: Contexts
    early_stop: bool
    are_time_steps: bool = False
    """Calls take parts of what was there before the first."""
    open: list[_Region] = field(default_factory=list)

    def call(self, block: int, *args: Any, **kwargs: Any) -> Any:
        """What the model's code calls in the place of a block's forward."""
        if torch.compiler.is_compiling() and self.contexts is no_contexts and self._is_alone(block):
            return checkpoint(self.forwards(block), *args, use_reentrant=False, **kwargs)
        return self._eager(block, args, kwargs)

    def _is_alone(self, block: int) -> bool:
        """True for a run of one block, which torch.compile knows how to compute again."""
        return any(run.first == block == run.last for run in self.runs) and self.early_stop

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _eager(self, block: int, args: Any, kwargs: Any) -> Any:
        """Not compiled, as the repetition is not."""
        return self._call(self.runs, block, args, kwargs)

    def _call(self, runs: Sequence[Run], block: int, args: Any, kwargs: Any) -> Any:
        """Call a block; it may open and close some of `runs`, and runs within them."""
        if not torch.is_grad_enabled():
            return self.forwards(block)(*args, **kwargs)
        inside: list[_Region] = []
        try:
            inside = self._enter(runs, block, args, kwargs)
            output = self.forwards(block)(*args, **kwargs)
            for region in reversed(inside):
                self._leave(region, block, output)
        except BaseException:
            self._close()
            raise
        return output

    def _enter(self, runs: Sequence[Run], block: int, args: Any, kwargs: Any) -> list[_Region]:
        """The regions around a block, outermost first; those that it begins are opened."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        inside: list[_Region] = []
        while (run := next((run for run in runs if block in run), None)) is not None:
            if block == run.first:
                region = self._open(run, leaves, spec)
            else:
                region = next((r for r in self.open if r.run is run), _Region(run=run))
                self._note(region, block, leaves, spec)
            inside.append(region)
            runs = run.inner
        return inside

    def _open(self, run: Run, leaves: list[Any], spec: Any) -> _Region:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        region = _Region(run=run, calls=[([], spec)], given={id(tensor) for tensor in tensors})
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        mine = [isinstance(leaf, Tensor) for leaf in leaves]
        again = partial(self._again, region, others, mine)
        options: tuple[Any, ...] = (
            True,
            self.contexts,
            "default",
            False,
            *_early(self.early_stop),
        )  # random numbers are drawn again
        region.generator = _checkpoint_without_reentrant_generator(again, *options, *tensors)
        with set_checkpoint_early_stop(self.early_stop):
            next(region.generator)
        self.open.append(region)
        return region

    def _note(self, region: _Region, block: int, leaves: list[Any], spec: Any) -> None:
        """Remember how a later block of a region is called."""
        known = {id(tensor): place for ref, place in region.made if (tensor := ref()) is not None}
        found = [_Output(known[id(leaf)]) if id(leaf) in known else leaf for leaf in leaves]
        before = block - 1
        chained = any(isinstance(leaf, _Output) and leaf.place[0] == before for leaf in found)
        others = (leaf for leaf in found if isinstance(leaf, Tensor) and leaf.grad_fn is not None)
        alone = self.are_time_steps or all(id(leaf) in region.given for leaf in others)
        if not chained or not alone or len(region.calls) != block - region.run.first:
            name, earlier = self.names(block), self.names(before)
            raise UnsupportedError(
                f"remat.segments {region.run.first}-{region.run.last} cannot be computed again as one: {name} is not "
                f"called with what {earlier} returned alone; a run's calls follow each other with nothing between",
                hint="name single blocks: --set remat.policy=full",
            )
        region.calls.append((found, spec))

    def _leave(self, region: _Region, block: int, output: Any) -> None:
        """A block is done; its last one closes a region."""
        if block < region.run.last:
            leaves = pytree.tree_leaves(output)
            region.made += [
                (weakref.ref(leaf), (block, n)) for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)
            ]
            return
        self.open.remove(region)
        generator, region.generator, region.made = region.generator, None, []
        if generator is not None:
            next(generator, None)  # as far as its end

    def finish(self, count: int) -> None:
        """The model is done, after so many calls. `UnsupportedError` if a run is not: it holds what others saved."""
        if self.open:
            last = self.open[0].run.last
            self._close()
            raise UnsupportedError(
                f"remat.segments has a run that ends with call {last}, but the model made {count} calls",
                hint="give it sequences of one length, or runs that end with the shortest one",
            )

    def _close(self) -> None:
        """Something failed: leave what is open."""
        while self.open:
            if (generator := self.open.pop().generator) is not None:
                generator.close()

    def _again(self, region: _Region, others: list[Any], mine: list[bool], *tensors: Any) -> None:
        """Compute a region again, from the tensors that its first block was called with."""
        given = iter(tensors)
        leaves = [next(given) if is_tensor else other for other, is_tensor in zip(others, mine, strict=True)]
        del tensors, given
        first, held = region.run.first, dict[_Place, Any]()
        last = {leaf.place: n for n, (some, _) in enumerate(region.calls) for leaf in some if isinstance(leaf, _Output)}
        for n, (some, spec) in enumerate(region.calls):
            if n:
                leaves = [held[leaf.place] if isinstance(leaf, _Output) else leaf for leaf in some]
            held = {place: tensor for place, tensor in held.items() if last[place] > n}
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            leaves = []
            output = self._call(region.run.inner, first + n, args, kwargs)
            made = enumerate(pytree.tree_leaves(output))
            held.update({(first + n, i): leaf for i, leaf in made if last.get((first + n, i), -1) > n})
            del output, args, kwargs, made


def compute_again(
    blocks: Sequence[tuple[str, nn.Module]],
    runs: Sequence[Run],
    *,
    contexts: Contexts = no_contexts,
    early_stop: bool = True,
) -> None:
    """Let the model that holds `blocks` compute `runs` of them again. Its code, names and state stay as they are.

    While it runs, `UnsupportedError` is raised where a run's blocks do not follow each other.
    """
    forwards = [module.forward for _, module in blocks]
    regions = _Regions(
        names=lambda block: blocks[block][0], forwards=forwards.__getitem__, runs=runs, contexts=contexts,
        early_stop=early_stop,
    )  # fmt: skip
    for run in runs:
        for block in range(run.first, run.last + 1):
            blocks[block][1].forward = partial(regions.call, block)


def compute_calls_again(model: nn.Module, cell: str, runs: Sequence[Run], *, early_stop: bool = True) -> None:
    """Let `model` compute runs of calls of its module `cell` again, counted from 0 in each forward pass.

    While it runs, `UnsupportedError` is raised where a call does not take what the one before it returned.
    """
    module = model.get_submodule(cell)
    forward = module.forward
    regions = _Regions(
        names=lambda call: f"{cell}, call {call}", forwards=lambda _: forward, runs=runs, contexts=no_contexts,
        early_stop=early_stop, are_time_steps=True,
    )  # fmt: skip
    counter = _Calls(regions=regions)
    module.forward = counter.call
    model.forward = wraps(model.forward)(partial(counter.run, model.forward))


@dataclass(slots=True, eq=False)
class _Calls:
    """Counts the calls of a module."""

    regions: _Regions
    number: int = 0

    def run(self, forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What is called in the place of the model's forward."""
        self.number = 0
        output = forward(*args, **kwargs)
        self.regions.finish(self.number)
        return output

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's code calls in the place of the module's forward."""
        self.number += 1
        return self.regions.call(self.number - 1, *args, **kwargs)


def _early(early_stop: bool) -> tuple[bool, ...]:  # noqa: FBT001  (the value of a positional argument)
    """Since 2.8 torch takes it as an argument; in all releases the context manager decides."""
    code = _checkpoint_without_reentrant_generator.__code__
    return (early_stop,) if "early_stop" in code.co_varnames[: code.co_argcount] else ()
