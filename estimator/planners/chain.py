"""A step as a chain of stages: what each one takes, keeps and needs, in seconds and bytes, read off its trace.

    forward    embed  [0]  [1]  [2]  head+loss         stages: blocks, and what lies before, between and behind them
    backward   embed' [0]' [1]' [2]' head'             of each: f, b seconds; bytes that enter, that it keeps, its peaks

Rotor (Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova 2019) plans over these numbers. A run of stages that keeps the
input of its first alone consists of blocks that follow each other with nothing between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dnnmem.estimator.block_list import block_lists, blocks_of_ops
from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.draft import Life, back_uses, lives
from dnnmem.estimator.plan import Offload
from dnnmem.estimator.trace import Phase, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A block, or what lies around blocks."""

    block: int | None = None
    """Its number over the model; None for what is no block and cannot be computed again."""
    follows: bool = False
    """True if it is called with what the stage before, a block of the same list, returned."""
    forward_seconds: float
    """Of its forward pass."""
    backward_seconds: float
    """Of its backward pass."""
    input_bytes: int
    """Made by the stage before, and read by this one."""
    saved_bytes: int
    """Made in its forward pass and alive until its backward pass, its output among them."""
    gradient_bytes: int
    """Made by backward passes of stages behind, and used by its own or one before."""
    left_bytes: int
    """Alive after its backward pass until the update: gradients of parameters, results that the program holds."""
    light_bytes: int
    """Peak of its forward pass, its input left out, if it keeps nothing but its output."""
    forward_bytes: int
    """The same if it keeps everything."""
    backward_bytes: int
    """Peak of its backward pass: what it saved, its gradients and temporaries."""
    spared_seconds: float = 0.0
    """Of its forward pass, behind the last tensor that its backward pass needs: where a run that is computed again ends
    with it, that is not."""
    sent_bytes: int = 0
    """What would travel if what it saves rested on the host: read by its backward pass, made by it or before."""
    sent_own_bytes: int = 0
    """Of it: made by it, and read by its backward pass alone."""
    sent_input_bytes: int = 0
    """Of it: made before, and read by its backward pass alone."""
    sent_shared_bytes: int = 0
    """Of it: made by the stage before, and read by the backward passes of both alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Stages in the order of the forward pass; the last one holds the loss."""

    stages: tuple[Stage, ...]
    """At least one."""
    base_bytes: int
    """Alive when the step begins."""


def chain_of(trace: Trace, seconds: Sequence[float]) -> Chain:
    """The chain that `trace` is, its ops taking `seconds`.

    Raises `UnsupportedError` for a model without blocks in a list, or whose blocks do not run once each in order.
    """
    owners, blocks, follows = _stages(trace)
    known = lives(trace.ops)
    life_of = _Lives(trace, owners, known)
    live = _live(trace)
    base = sum(trace.storages[i].nbytes for i in trace.pinned)
    count = len(blocks)
    f, b = [0.0] * count, [0.0] * count
    for k, op in enumerate(trace.ops):
        if op.phase is not Phase.STEP:
            (f if op.phase is Phase.FORWARD else b)[owners[k]] += seconds[k]
    peaks = [0] * count
    lefts = [sum(life_of.left[s + 1 :]) for s in range(count)]
    saved = [sum(life_of.saved[:s]) for s in range(count)]
    forward = [0] * count
    for k, op in enumerate(trace.ops):
        s = owners[k]
        if op.phase is Phase.FORWARD:
            forward[s] = max(forward[s], live[k] - base - saved[s] - life_of.entering[s])
        elif op.phase is Phase.BACKWARD:
            peaks[s] = max(peaks[s], live[k] - base - saved[s] - lefts[s])
    sends = _Sends(trace, owners, known)
    stages = tuple(
        Stage(
            block=blocks[s], follows=follows[s], forward_seconds=f[s], backward_seconds=b[s],
            input_bytes=life_of.input[s], saved_bytes=life_of.saved[s], gradient_bytes=life_of.gradient[s],
            left_bytes=life_of.left[s], light_bytes=_light(trace, owners, known, s),
            forward_bytes=max(forward[s], life_of.saved[s]), backward_bytes=peaks[s],
            spared_seconds=f[s] - sum(seconds[k] for k in sends.needed(s)) if sends.needed(s) else 0.0,
            sent_bytes=sends.all[s], sent_own_bytes=sends.own[s], sent_input_bytes=sends.input[s],
            sent_shared_bytes=sends.shared[s],
        )
        for s in range(count)
    )  # fmt: skip
    return Chain(stages=stages, base_bytes=base)


def leaving_parts(chain: Chain, parts: int) -> Chain:
    """The same where ranks keep one of `parts` of what a backward pass leaves: its gradients."""
    if parts == 1:
        return chain
    stages = tuple(replace(stage, left_bytes=stage.left_bytes // parts) for stage in chain.stages)
    return replace(chain, stages=stages)


def _stages(trace: Trace) -> tuple[list[int], list[int | None], list[bool]]:
    """The stage of each op; of each stage its block, and whether it follows the one before."""
    block_of, own, starts = _blocks(trace)
    blocks: list[int | None] = []
    follows: list[bool] = []
    seen: dict[int, int] = {}
    owners = [0] * len(trace.ops)
    for k, op in enumerate(trace.ops):
        if op.phase is not Phase.FORWARD:
            continue
        block = block_of[k]
        if not blocks or blocks[-1] != block:
            chained = bool(blocks) and block is not None and blocks[-1] == block - 1 and block not in starts
            follows.append(chained and own[k])
            blocks.append(block)
            if block is not None and seen.setdefault(block, len(blocks) - 1) != len(blocks) - 1:
                raise UnsupportedError(
                    f"block {block} of {trace.origin.target or 'the model'} runs in several parts; a chain's blocks "
                    "run once each",
                    hint="--set remat.policy=full",
                )
        owners[k] = len(blocks) - 1
    if not seen:
        raise UnsupportedError(
            f"{trace.origin.target or 'the model'} is no chain: it needs blocks in a list (ModuleList, Sequential)"
        )
    if blocks[-1] is not None:  # the loss is a stage of its own
        blocks.append(None)
        follows.append(False)
    _backward_owners(trace, block_of, seen, blocks, owners)
    return owners, blocks, follows


def _blocks(trace: Trace) -> tuple[list[int | None], list[bool], set[int]]:
    """Of each op: its block, counted over the model, and whether it lies in it; the first blocks of lists."""
    ops = trace.ops
    block_of: list[int | None] = [None] * len(ops)
    own = [False] * len(ops)
    starts: set[int] = set()
    count = 0
    for some in block_lists(trace):
        starts.add(count)
        numbers = some.numbers(ops)
        for k, owner in enumerate(blocks_of_ops(ops, some)):
            if owner is not None:
                block_of[k], own[k] = count + owner, numbers[k] is not None
        count += some.count
    return block_of, own, starts


def _backward_owners(
    trace: Trace, block_of: Sequence[int | None], seen: dict[int, int], blocks: Sequence[int | None], owners: list[int]
) -> None:
    """Backward ops between those of blocks belong to what lies between these in the forward pass, if anything does."""
    stage = len(blocks) - 1
    for k, op in enumerate(trace.ops):
        if op.phase is not Phase.BACKWARD:
            continue
        block = block_of[k]
        if block is not None and block in seen:
            stage = seen[block]
        elif blocks[stage] is not None and stage and blocks[stage - 1] is None:
            stage -= 1
        owners[k] = stage


class _Lives:
    """Bytes by stage."""

    def __init__(self, trace: Trace, owners: Sequence[int], known: dict[int, Life]) -> None:
        count = max(owners, default=0) + 1
        self.input, self.saved, self.gradient, self.left, self.entering = ([0] * count for _ in range(5))
        self._phases = [op.phase for op in trace.ops]
        self._owners = owners
        self._ends = {owner: k for k, owner in enumerate(owners) if self._phases[k] is Phase.FORWARD}
        for i, life in known.items():
            nbytes = trace.storages[i].nbytes
            if life.made < 0 or self._phases[life.made] is Phase.STEP or not nbytes:
                continue
            s = owners[life.made]
            if stays := life.freed < 0 or self._phases[life.freed] is Phase.STEP:
                self.left[s] += nbytes
            if self._phases[life.made] is Phase.FORWARD:
                self._add_made_forward(s, life, nbytes, stays=stays)
            elif not stays:
                for t in range(owners[life.freed], s):
                    self.gradient[t] += nbytes

    def _add_made_forward(self, s: int, life: Life, nbytes: int, *, stays: bool) -> None:
        if stays or self._phases[life.freed] is not Phase.FORWARD:
            self.saved[s] += nbytes
        elif s + 1 in self._ends and life.freed > self._ends[s]:
            self.entering[s + 1] += nbytes
        if any(self._owners[k] == s + 1 and self._phases[k] is Phase.FORWARD for k in life.uses):
            self.input[s + 1] += nbytes


class _Sends:
    """What backward passes need of the forward pass, by stage."""

    def __init__(self, trace: Trace, owners: Sequence[int], known: dict[int, Life]) -> None:
        count = max(owners, default=0) + 1
        self.all, self.own, self.input, self.shared = ([0] * count for _ in range(4))
        self._last = [-1] * count
        self._forward: list[list[int]] = [[] for _ in range(count)]
        backward: set[int] = set()
        for k, op in enumerate(trace.ops):
            if op.phase is Phase.FORWARD:
                self._forward[owners[k]].append(k)
            elif op.phase is Phase.BACKWARD:
                backward.add(k)
        for i, life in known.items():
            if i in trace.pinned or life.made < 0 or trace.ops[life.made].phase is not Phase.FORWARD:
                continue
            s, storage = owners[life.made], trace.storages[i]
            readers = {owners[k] for k in back_uses(storage, life, backward)}
            if s in readers:
                writers = (k for k in life.uses if k not in backward and owners[k] == s and i in trace.ops[k].writes)
                self._last[s] = max(self._last[s], *writers, life.made)
            if storage.saved and storage.nbytes >= Offload().min_bytes:
                self._add(s, {t for t in readers if t >= s}, storage.nbytes)

    def _add(self, s: int, readers: set[int], nbytes: int) -> None:
        for t in readers:
            self.all[t] += nbytes
            if len(readers) == 1:
                (self.own if t == s else self.input)[t] += nbytes
        if readers == {s, s + 1}:
            self.shared[s + 1] += nbytes

    def needed(self, s: int) -> list[int]:
        """Forward ops of a stage up to the last one that its backward pass needs."""
        return [k for k in self._forward[s] if k <= self._last[s]]


def _live(trace: Trace) -> list[int]:
    """Most bytes alive within each op."""
    live = sum(trace.storages[i].nbytes for i in trace.pinned)
    found = []
    for op in trace.ops:
        most = live
        for event in op.events:
            live += event.nbytes
            most = max(most, live)
        found.append(most)
    return found


def _light(trace: Trace, owners: Sequence[int], known: dict[int, Life], stage: int) -> int:
    """Peak of a stage's forward pass if all that it makes goes after its last use there."""
    inside = [k for k, op in enumerate(trace.ops) if owners[k] == stage and op.phase is Phase.FORWARD]
    if not inside:
        return 0
    mine = set(inside)
    end: dict[int, list[int]] = {}
    for i in {e.storage for k in inside for e in trace.ops[k].events if e.nbytes > 0 and e.storage >= 0}:
        life = known[i]
        if life.freed not in mine:
            uses = [k for k in life.uses if k in mine]
            leaves = any(trace.ops[k].phase is Phase.FORWARD and k > inside[-1] for k in life.uses)
            end.setdefault(inside[-1] if leaves else max(uses, default=inside[-1]), []).append(trace.storages[i].nbytes)
    live = peak = 0
    for k in inside:
        for event in trace.ops[k].events:
            if event.nbytes > 0 or event.storage < 0 or known[event.storage].made in mine:
                live += event.nbytes
                peak = max(peak, live)
        live -= sum(end.get(k, ()))
    return peak
