"""A stage of the user's own model: a run of its blocks, with what is before the first and after the last.

    blocks of other stages   gone from their list while this one runs
    modules before them      in later stages: stand-ins without parameters, whose output is what came in
    first block              is given what came instead
    last block               ends the forward pass: what it returns is sent on
    last stage               ends where the training loop calls `loss.backward()`: the loss is its output

So neither the model's code nor the loop's is known or changed: masks and rotations are made where they always are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dnnmem.estimator.errors import ModelError, UnsupportedError
from dnnmem.profilers.apply.beside_blocks import beside_blocks
from dnnmem.profilers.found_blocks import lists_of

Forward = Callable[[Any, Any], object]
"""A training loop's step up to the backward pass: of a model and a micro-batch."""


class Done(BaseException):
    """Ends a forward pass inside the model, past whatever its code would catch."""

    def __init__(self, value: Tensor) -> None:
        """`value` is the stage's output."""
        super().__init__()
        self.value = value


@dataclass(slots=True, kw_only=True)
class Cut:
    """A model in chunks, those of this rank kept."""

    model: nn.Module
    """What is left of it."""
    holder: nn.Module
    """The module that has the blocks."""
    names: list[list[str]]
    """Names in `holder` of each chunk's blocks."""
    blocks: dict[str, nn.Module]
    """Those of this rank."""
    beside: dict[int, list[nn.Module]]
    """Modules with parameters that run before the blocks and after them, by chunk; those of this rank."""
    tied: list[tuple[nn.Module, str]]
    """Parameters that are before the blocks and after them: where this rank has them, and their names there."""
    before: list[tuple[nn.Module, str]]
    """Where modules are that run before the blocks: the first chunk's alone, even where its rank has later ones."""
    received: Tensor | None = None
    """What the stage before has sent, while a chunk runs."""

    @contextmanager
    def only(self, chunk: int) -> Iterator[None]:
        """The model has the blocks of `chunk` alone, and what is before them if it is the first."""
        names = self.names[chunk]
        self.holder._modules = {name: self.blocks[name] for name in names}
        real = [parent._modules[name] for parent, name in self.before]
        for parent, name in self.before if chunk else ():
            parent._modules[name] = _StandIn(self)
        try:
            yield
        finally:
            self.holder._modules = dict(self.blocks)
            for (parent, name), module in zip(self.before, real, strict=True):
                parent._modules[name] = module


class Stage(nn.Module):
    """What PyTorch's pipelines run: `forward` is the loop's code on one micro-batch."""

    parts: nn.ModuleList
    beside: nn.ModuleDict

    def __init__(self, cut: Cut, chunk: int, forward: Forward, batches: Sequence[Any]) -> None:
        """Parameters are those of the chunk, in the model's order; `batches` are filled before each step."""
        super().__init__()
        blocks = nn.ModuleList(cut.blocks[name] for name in cut.names[chunk])
        beside = nn.ModuleDict({f"part_{chr(ord('a') + n)}": it for n, it in enumerate(cut.beside.get(chunk, ()))})
        for name, module in (("parts", blocks), ("beside", beside))[:: 1 if chunk else -1]:
            self.add_module(name, module)
        self.__dict__["sides"] = ([], []) if not self.beside else ([], [*self.beside.values()])[:: 1 if chunk else -1]
        self.__dict__.update(_cut=cut, _chunk=chunk, _forward=forward, _batches=batches, _number=0)

    def listen(self) -> None:
        """Let the stage's ends act, once all else hangs on its blocks: FSDP2 must see a block return.

        The number of the micro-batch is read before FSDP2 takes it to the GPU, from where it would have to be fetched.
        """
        cut, chunk = self.__dict__["_cut"], self.__dict__["_chunk"]
        names = cut.names[chunk]
        if chunk:
            cut.blocks[names[0]].register_forward_pre_hook(_enter(cut, chunk), with_kwargs=True, prepend=True)
        if chunk < len(cut.names) - 1:
            cut.blocks[names[-1]].register_forward_hook(_leave)
        self.register_forward_pre_hook(_count, with_kwargs=True, prepend=True)

    def forward(self, received: Tensor) -> Tensor:
        """The output of a micro-batch; the first stage receives nothing of use."""
        cut: Cut = self.__dict__["_cut"]
        chunk: int = self.__dict__["_chunk"]
        cut.received = received if chunk else None
        try:
            with cut.only(chunk), ends_at_backward():
                self.__dict__["_forward"](cut.model, self.__dict__["_batches"][self.__dict__["_number"]])
        except Done as done:
            return done.value.clone() if done.value._is_view() else done.value  # PyTorch detaches it in place
        finally:
            cut.received = None
        raise ModelError(
            "the training step ended without loss.backward(): there is no loss for a pipeline's last stage"
        )


def cut_model(model: nn.Module, of_block: Callable[[int], list[int]], mine: Sequence[int]) -> Cut:
    """Keep of `model` the chunks `mine`; `of_block` gives the chunk of each of so many blocks.

    Raises `UnsupportedError` for a model whose blocks are in several lists, or in none.
    """
    lists = lists_of(model)
    if len(lists) != 1:
        raise UnsupportedError(
            f"{type(model).__name__} has {len(lists)} lists of blocks; stages are runs of one", hint="--set mesh.pp=1"
        )
    holder = model.get_submodule(".".join(lists[0].root))
    chunks = of_block(lists[0].count)
    names: list[list[str]] = [[] for _ in range(max(chunks) + 1)]
    for name, chunk in zip(list(holder._modules), chunks, strict=True):
        names[chunk].append(name)
    found = {name: holder._modules[name] for chunk in mine for name in names[chunk]}
    last = len(names) - 1
    sides = dict(zip((0, last), beside_blocks(model, tied=True), strict=True))
    blocks = {name: block for name, block in found.items() if block is not None}
    tied = _tied(sides[0], sides[last], at=0 if 0 in mine else 1)
    beside = {chunk: modules for chunk, modules in sides.items() if chunk in mine}
    cut = Cut(
        model=model, holder=holder, names=names, blocks=blocks, beside=beside, tied=tied,
        before=_places(model, sides[0]),
    )  # fmt: skip
    for chunk, modules in sides.items():
        for parent, name in _places(model, modules) if chunk not in mine else ():
            parent._modules[name] = _StandIn(cut)
    holder._modules = dict(cut.blocks)
    return cut


def _tied(before: Sequence[nn.Module], after: Sequence[nn.Module], at: int) -> list[tuple[nn.Module, str]]:
    """Parameters of both sides, named by the side `at`."""
    places: tuple[dict[int, tuple[nn.Module, str]], ...] = tuple(
        {id(p): (module, name) for module in modules for name, p in module.named_parameters(recurse=False)}
        for modules in (before, after)
    )
    return [places[at][key] for key in places[1] if key in places[0]]


def _places(model: nn.Module, modules: Sequence[nn.Module]) -> list[tuple[nn.Module, str]]:
    """The parent of each of `modules`, and its name there."""
    wanted = {id(module) for module in modules}
    return [
        (parent, name) for parent in model.modules() for name, child in parent.named_children() if id(child) in wanted
    ]


class _StandIn(nn.Module):
    """In the place of a module with parameters that another stage has."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.__dict__["_cut"] = cut

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What came from the stage before: of the right size and type, whatever it is added to."""
        del args, kwargs
        received = self.__dict__["_cut"].received
        return None if received is None else received.detach()


def _count(stage: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    number = kwargs.pop("microbatch", None)
    stage.__dict__["_number"] = 0 if number is None or number.is_meta else int(number)
    return args, kwargs


def _enter(cut: Cut, chunk: int) -> Callable[..., Any]:
    def give(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (cut.received, *args[1:]), kwargs
        name = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
        if name is None:
            raise UnsupportedError(f"the first block of chunk {chunk} takes no tensor", hint="--set mesh.pp=1")
        return args, {**kwargs, name: cut.received}

    return give


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    del args
    found = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(found, Tensor):
        raise UnsupportedError(f"a block of type {type(module).__name__} returns no tensor", hint="--set mesh.pp=1")
    raise Done(found)


@contextmanager
def ends_at_backward() -> Iterator[None]:
    """The training loop's `loss.backward()` raises `Done` with the loss."""
    backward = Tensor.backward

    def hand_over(self: Tensor, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        raise Done(self)

    Tensor.backward = hand_over  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.backward = backward  # type: ignore[method-assign]
