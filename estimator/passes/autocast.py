"""Autocast: a step recorded in float32 as torch.autocast on CUDA runs it; products in a lower type, casts around them.

    recorded    norm -> y          mm(y, w) -> z                    backward   mm(g, w) -> dy      mm(g, y) -> dw
    autocast    norm -> y, y', w'  mm(y', w') -> z'    y goes with its last module              g -> g'
                                                                    mm(g', w') -> dy'  mm(g', y') -> dw'  -> dy, dw

Casts of parameters are made once and stay until the forward pass is over; of everything else each op makes its own.
What autograd keeps is what an op really read: y' and not y. The backward pass casts back wherever forward cast: the
gradient of a tensor has the tensor's type. Floating outputs of the model are cast to float32 when it returns.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

from dnnmem.estimator.passes.autocast_attention import backward, forward, half_kernel
from dnnmem.estimator.passes.autocast_links import groups, links
from dnnmem.estimator.passes.autocast_lists import BATCH_NORMS, STATISTICS, Policy, base, policy_of
from dnnmem.estimator.passes.draft import Draft, lives
from dnnmem.estimator.passes.update import SIZES
from dnnmem.estimator.trace import Event, Kind, Op, Phase, Storage, Trace
from dnnmem.estimator.trace_copy import op_like, renamed, storage_like

LOSS = ("<loss>",)
FLOAT = "float32"


def autocast(trace: Trace, lower: str) -> Trace:
    """`trace`, recorded in float32, with its forward pass under autocast to `lower`."""
    return Autocast(trace, lower).run()


class Autocast:
    def __init__(self, trace: Trace, lower: str) -> None:
        self.trace, self.lower, self.ops = trace, lower, trace.ops
        self.draft, self.known = Draft(trace), lives(trace.ops)
        inside = [k for k, op in enumerate(trace.ops) if op.phase is Phase.FORWARD and op.module != LOSS]
        self.last = inside[-1] if inside else -1
        self.first_backward = next((k for k, op in enumerate(trace.ops) if op.phase is Phase.BACKWARD), len(trace.ops))
        self.types: dict[int, str] = {}
        """Storage -> its type now, where that is not the recorded one."""
        self.casts: dict[tuple[int, int], int] = {}
        """(forward op, storage it was recorded to read) -> the cast that it reads."""
        self.cached: dict[int, int] = {}
        """Parameter -> its cast."""
        self.ends: dict[int, int] = {}
        """Cast -> op after which it is gone."""
        self.between: dict[tuple[int, int], int] = {}
        """(forward op, its recorded result) -> the wider one that it makes."""
        self.released = {i: k for k, op in enumerate(trace.ops) for i in op.releases}
        """Storage that autograd keeps -> the op with which the program lets go of it."""
        self.of_params: set[int] = set()
        """Gradients of parameters."""
        self.fresh: set[int] = set()
        """Gradients that a cast makes: nobody else holds them."""
        self.same: dict[int, int] = {}
        """Storage that is not made -> the one that stands for it."""
        self.sums: set[int] = set()
        """Those of them that are sums: added into their first term."""
        self.sizes: dict[int, int] = {}
        """Other sizes of what has no other type."""
        self.kernels: dict[int, str] = {}
        """Forward op of attention -> the kernel that runs it."""
        self.outputs: dict[int, int] = {}
        """Output of the model, in float32 -> what it was cast from."""

    def run(self) -> Trace:
        forward = [(k, op) for k, op in enumerate(self.ops) if op.phase is Phase.FORWARD]
        for k, op in forward:
            if k <= self.last:
                self._forward(k, op)
        self._cast_outputs()
        for k, op in forward:
            if k > self.last:
                self._forward(k, op)
        linked = links(self.ops)
        for group in groups(self.ops, linked):
            self._backward(group, linked.get(group[0]))
        self._free_casts()
        self._free_earlier()
        sizes = {i: self._nbytes(i) for i in self.types if i in self.trace.storages}
        for i in sizes:
            self.draft.storages[i] = storage_like(self.draft.storages[i], dtype=self.types[i])
        self.draft.resize({**sizes, **self.sizes})
        self._move_bytes()
        return self._joined(self.draft.finish())

    def _type(self, i: int) -> str:
        return self.types.get(i) or self.draft.storages[i].dtype

    def _is_cast(self, i: int) -> bool:
        return self._type(i) in {FLOAT, self.lower} and i in self.draft.storages

    def _nbytes(self, i: int) -> int:
        recorded = self.trace.storages[i]
        return recorded.nbytes * SIZES[self.types[i]] // (4 if recorded.dtype == "complex64" else SIZES[recorded.dtype])

    def _set(self, i: int, dtype: str) -> None:
        if self.trace.storages[i].dtype == FLOAT and dtype != FLOAT and self.known[i].made >= 0:
            self.types[i] = dtype

    # forward ------------------------------------------------------------------------------------------------------

    def _forward(self, k: int, op: Op) -> None:
        floats = [i for i in op.reads if self._is_cast(i)]
        policy = self._policy(k, op) if k <= self.last and op.module != LOSS else Policy.PROMOTE
        wanted = {Policy.LOWER: self.lower, Policy.FLOAT32: FLOAT}.get(policy)
        if policy is Policy.WIDEST or (policy is Policy.RESULT and "softmax" in op.name and self.lower == "bfloat16"):
            wanted = self._widest(floats) if policy is Policy.WIDEST else FLOAT
        if self._returns(k, op) and self.lower in map(self._type, floats):
            self._between_casts(k, op, floats)
            return
        if wanted is not None:
            new = {i: self._cast(k, i, wanted) for i in _in_order(op, floats) if self._type(i) != wanted}
            if new:
                self._read(k, new)
        result = FLOAT if policy is Policy.RESULT else wanted or self._promoted(op, floats)
        statistics = base(op.name) in STATISTICS
        for n, i in enumerate(op.writes):
            if self.known[i].made == k and not (statistics and n):
                self._set(i, result)
        if wanted == self.lower and "_attention" in op.name:
            self.kernels[k] = half_kernel(self.trace, op)
            if self.kernels[k] in {"flash", "cudnn"}:
                self.sizes.update(forward(self.draft, k, self.kernels[k]))
                self._leave_order(k, op)

    def _policy(self, k: int, op: Op) -> Policy:
        """That of the operator which the program called: some call others, which follow their type."""
        short, users = base(op.name), [self.ops[j] for i in op.writes for j in self.known[i].uses if k < j <= self.last]
        if short == "_log_softmax" and any(base(user.name).startswith("nll_loss") for user in users):
            return Policy.PROMOTE  # cross_entropy asks for the type that it was given
        near = [user for user in users if (user.module, user.source) == (op.module, op.source)]
        if short == "clone" and near and len(near) == len(users) and policy_of(near[0].name) is Policy.LOWER:
            return Policy.LOWER  # a product puts in order what has been cast
        if short == "add_" and any(self.trace.storages[i].kind is Kind.PARAM for i in op.reads):
            before = self.ops[k - 1]
            if policy_of(before.name) is Policy.LOWER and not {*before.writes}.isdisjoint(op.reads):
                return Policy.LOWER  # a linear layer's bias
        return policy_of(op.name)

    def _between_casts(self, k: int, op: Op, floats: Sequence[int]) -> None:
        """Complex numbers are of float32: what was half is cast, and the result cast back as the program says."""
        self._read(k, {i: self._cast(k, i, FLOAT) for i in floats if self._type(i) == self.lower})
        for i in op.writes:
            if self.known[i].made == k and self.trace.storages[i].dtype in {FLOAT, "complex64"}:
                self.types[i] = self.lower
                wide = self._made_as(k, i, self.trace.storages[i].dtype)
                self.between[k, i] = wide
                self.draft.after.setdefault(k, []).append(self._to(op, op.phase, wide, i, gone=None if self.trace.storages[i].saved and self.trace.storages[i].dtype == FLOAT else wide))

    def _leave_order(self, k: int, op: Op) -> None:
        """Results of cuDNN lie as the queries do: what lies (T, B, H * D) needs no copy into this order."""
        (b, h, t, d), queries = self.trace.storages[op.writes[0]].shape, self.trace.storages[op.reads[0]].shape
        follower = self.ops[k + 1]
        if self.kernels[k] != "cudnn" or queries[-3:] != (t, b, h * d) or follower.name != "aten.clone.default":
            return
        if follower.reads == op.writes[:1]:
            self.same[follower.writes[0]] = op.writes[0]

    def _widest(self, floats: Iterable[int]) -> str:
        return FLOAT if any(self._type(i) == FLOAT for i in floats) else self.lower

    def _promoted(self, op: Op, floats: Sequence[int]) -> str:
        if base(op.name) in BATCH_NORMS and floats:
            return self._type(floats[0])
        whole = [i for i in floats if self.draft.storages[i].shape] or floats
        return self._widest(whole) if whole else FLOAT

    def _cast(self, k: int, i: int, dtype: str) -> int:
        """The cast of `i` that op `k` reads, made just before it unless it is a parameter's that is there."""
        storage = self.draft.storages[i]
        if i in self.cached:
            new = self.cached[i]
        else:
            new = self._copy(k, i, dtype, Kind.ACTIVATION)
            if self._is_kept(i):
                self.cached[i] = new
                self.ends[new] = self.last
        self.casts[k, i] = new
        self.ends[new] = max(self.ends.get(new, -1), k)
        return new

    def _is_kept(self, i: int) -> bool:
        """True for what is cast once, and stays so until the forward pass is over."""
        return self.trace.storages[i].kind is Kind.PARAM

    def _returns(self, k: int, op: Op) -> bool:
        """True if the program casts the result back to the lower type."""
        del k
        return any(self._type(i) == "complex64" for i in (*op.reads, *op.writes))

    def _copy(self, k: int, i: int, dtype: str, kind: Kind, *, place: int | None = None) -> int:
        """A copy of storage `i` in another type, made just before op `k`; placed as op `place`."""
        storage, like = self.draft.storages[i], self.ops[k if place is None else place]
        nbytes = self._size(i) * SIZES[dtype] // SIZES[self._type(i)]
        new = self.draft.add(
            storage_like(
                storage, kind=kind, dtype=dtype, nbytes=nbytes, name="", module=like.module,
                saved=kind is Kind.ACTIVATION,
            )
        )  # fmt: skip
        self.draft.before.setdefault(k, []).append(self._to(like, self.ops[k].phase, i, new))
        return new

    def _to(self, like: Op, phase: Phase, old: int, new: int, gone: int | None = None) -> Op:
        size, made = self._size(old), self._size(new)
        events = [Event(made, 0, new)] if made else []
        if gone is not None and size:
            events.append(Event(-size, 0, gone))
        return Op(
            name="aten._to_copy.default", module=like.module, phase=phase, reads=(old,), writes=(new,),
            events=tuple(events), moved_bytes=size + made, source=like.source,
        )  # fmt: skip

    def _size(self, i: int) -> int:
        return self._nbytes(i) if i in self.types and i in self.trace.storages else self.draft.storages[i].nbytes

    def _read(self, k: int, new: dict[int, int]) -> None:
        op = self.draft.ops[k]
        self.draft.ops[k] = op_like(op, reads=tuple(dict.fromkeys(new.get(i, i) for i in op.reads)))

    def _cast_outputs(self) -> None:
        """What the program holds of the model's outputs, in float32; the lower one goes unless autograd keeps it."""
        made = [i for i, life in self.known.items() if 0 <= life.made <= self.last]
        for i in [i for i in made if self.types.get(i) == self.lower]:
            life, storage = self.known[i], self.trace.storages[i]
            read = any(self.ops[k].module == LOSS for k in life.uses)
            held = life.freed >= self.first_backward and not storage.saved
            if not read and not held:
                continue
            low = self.draft.add(
                storage_like(storage, dtype=self.lower, nbytes=self._nbytes(i), kind=Kind.TEMP)
            )
            del self.types[i]
            self.outputs[i] = low
            for k in life.uses:
                if k <= self.last:
                    self._rename(k, {i: low})
                    self.draft.before[k] = [
                        op_like(op, reads=tuple(low if r == i else r for r in op.reads)) for op in self.draft.before.get(k, ())
                    ]
            inside = [k for k in life.uses if k <= self.last]
            self.casts.update({(k, i): low for k in inside if i in self.ops[k].reads})
            like = op_like(self.ops[life.made], module=())
            self.draft.after.setdefault(self.last, []).append(self._to(like, Phase.FORWARD, low, i, gone=low))

    def _rename(self, k: int, new: dict[int, int]) -> None:
        op = self.draft.ops[k]
        size = self.draft.storages
        events = tuple(
            Event(size[new[e.storage]].nbytes * (1 if e.nbytes > 0 else -1), 0, new[e.storage])
            if e.storage in new else e
            for e in op.events
        )  # fmt: skip
        reads, writes = (tuple(new.get(i, i) for i in ids) for ids in (op.reads, op.writes))
        self.draft.ops[k] = op_like(op, reads=reads, writes=writes, events=events)

    # backward -----------------------------------------------------------------------------------------------------

    def _backward(self, group: Sequence[int], f: int | None) -> None:
        """Ops of one node: they read what it read, and its gradients have the types of what they are gradients of."""
        first, last = group[0], group[-1]
        if f is not None:
            self._cast_gradient(group, f)
            for k in group:
                new = {i: self.casts[f, i] for i in self.ops[k].reads if (f, i) in self.casts}
                if new:
                    self._read(k, new)
                    self.ends.update({c: max(self.ends.get(c, -1), last) for c in new.values() if c in self.ends})
        back: list[tuple[int, int]] = []
        for k in group:
            back += self._gradients(k, f)
        summed = self._is_sum(last + 1, {i for k in group for i in self.ops[k].writes})
        for low, i in sorted(back, key=self._is_owned):  # the input's first, summed at once
            place = last + 1 if summed and self._is_owned((low, i)) else last
            self.draft.after.setdefault(place, []).append(self._to(self.ops[last], Phase.BACKWARD, low, i, gone=low))
            self.fresh.add(i)
        if f in self.kernels:
            out = self.ops[f].writes[0]
            backward(self.draft, first, self.kernels[f], (self.trace.storages[out], self.trace.storages[out]))

    def _is_owned(self, pair: tuple[int, int]) -> bool:
        """True for the gradient of a parameter."""
        storage = self.trace.storages[pair[1]]
        return storage.kind is Kind.GRAD or pair[1] in self.of_params

    def _is_sum(self, k: int, made: set[int]) -> bool:
        """True if op `k` adds one of these gradients to another."""
        if k >= len(self.ops) or self.ops[k].phase is not Phase.BACKWARD:
            return False
        return base(self.ops[k].name) in {"add", "add_"} and not made.isdisjoint(self.ops[k].reads)

    def _cast_gradient(self, group: Sequence[int], f: int) -> None:
        """What comes in has the type of the forward op's result."""
        out = next((i for i in self.ops[f].writes if i in self.draft.storages), None)
        if out is None or self.trace.storages[out].dtype != FLOAT:
            return
        wanted = self.lower if out in self.outputs else self._type(out)
        forward = {*self.ops[f].reads, *self.ops[f].writes}
        made = [
            i for i in self.ops[group[0]].reads
            if i not in forward and self._is_cast(i) and self.known[i].made >= self.first_backward
        ]  # fmt: skip
        for i in made:
            if self._type(i) == wanted:
                continue
            new = self._copy(group[0], i, wanted, Kind.TEMP)
            self.ends[new] = group[-1]
            for k in group:
                self._read(k, {i: new})
            freed = self.known[i].freed
            if freed in group and not any(i in self.ops[k].writes for k in group):
                self.draft.unfree(freed, i)
                cast = self.draft.before[group[0]][-1]
                events = (*cast.events, Event(-self._size(i), 0, i))
                self.draft.before[group[0]][-1] = op_like(cast, events=events)

    def _gradients(self, k: int, f: int | None) -> list[tuple[int, int]]:
        """Give what op `k` makes its types; (lower or wider one that it makes, the recorded one to cast it to)."""
        op = self.ops[k]
        made = [i for i in op.writes if self.known[i].made == k and self.trace.storages[i].dtype in {FLOAT, "complex64"}]
        if not made:
            return []
        runs_in = self._promoted(op, [i for i in self.draft.ops[k].reads if self._is_cast(i)])
        if f is not None and base(op.name) not in BATCH_NORMS:
            policy = policy_of(self.ops[f].name)
            runs_in = {Policy.LOWER: self.lower, Policy.FLOAT32: FLOAT}.get(policy, runs_in)
        back: list[tuple[int, int]] = []
        for i in made:
            source = self._source_of(i, f, op) if f is not None else None
            made_in, wanted = runs_in, runs_in
            if source is not None:
                wanted = self._type(source)
                is_cast = f is not None and (f, source) in self.casts
                made_in = self._type(self.casts[f, source]) if is_cast and f is not None else wanted
                if not is_cast and policy_of(op.name) is Policy.LOWER:
                    made_in = self.lower
            if self.trace.storages[i].dtype == "complex64":
                if wanted == self.lower:
                    self.types[i] = wanted
                    back.append((self._made_as(k, i, "complex64"), i))
                continue
            if source is not None and self.trace.storages[source].kind is Kind.PARAM:
                self.of_params.add(i)
            self._set(i, wanted)
            if made_in != wanted:
                back.append((self._made_as(k, i, made_in), i))
        return back

    def _made_as(self, k: int, i: int, dtype: str) -> int:
        storage = self.trace.storages[i]
        nbytes = storage.nbytes if dtype == storage.dtype else storage.nbytes * SIZES[dtype] // SIZES[FLOAT]
        low = self.draft.add(storage_like(storage, dtype=dtype, nbytes=nbytes, kind=Kind.TEMP, name="", saved=False))
        op = self.draft.ops[k]
        events = tuple(Event(nbytes, e.stream, low) if e.storage == i and e.nbytes > 0 else e for e in op.events)
        writes = tuple(low if w == i else w for w in op.writes)
        self.draft.ops[k] = op_like(op, writes=writes, events=events)
        return low

    def _source_of(self, i: int, f: int, op: Op) -> int | None:
        """The input of forward op `f` that `i` is the gradient of: a parameter by its name, others by their size."""
        made, reads = self.trace.storages[i], self.ops[f].reads
        floats = [r for r in reads if self.trace.storages[r].dtype == FLOAT]
        if made.kind is Kind.GRAD:
            for r in floats:
                s = self.trace.storages[r]
                if s.kind is Kind.PARAM and prod(s.shape) == prod(made.shape):
                    return r
        read = {*op.reads}
        others = [r for r in floats if self.trace.storages[r].kind is not Kind.PARAM or made.kind is not Kind.GRAD]
        same = [r for r in others if self.trace.storages[r].nbytes == made.nbytes]
        if len(same) > 1 and policy_of(op.name) is Policy.LOWER:
            same = [r for r in same if r not in read] or same  # a product's gradient is made with the other factor
        if same:
            return same[0]
        whole = [r for r in others if self.trace.storages[r].kind is not Kind.PARAM and r not in read]
        return whole[0] if whole and policy_of(op.name) is Policy.LOWER else None

    # frees --------------------------------------------------------------------------------------------------------

    def _free_casts(self) -> None:
        for cast, k in self.ends.items():
            self.draft.free(k, cast)

    def _free_earlier(self) -> None:
        """What autograd does not keep any more goes when the program lets go of it."""
        held: dict[int, None] = {}
        for k, i in self.casts:
            if self.casts[k, i] in self.ends:
                held[i] = None
        for i in held:
            life, storage = self.known[i], self.trace.storages[i]
            if life.made < 0 or not storage.saved or life.freed < self.first_backward:
                continue
            left = [k for k in life.uses if k >= self.first_backward and i in (*self.draft.ops[k].reads, *self.draft.ops[k].writes)]
            new = max(left) if left else self._death(i)
            if new < life.freed and not (left and self.ops[new].module == self.ops[life.freed].module):
                self.draft.unfree(life.freed, i)
                self.draft.free(new, i)
                if not left:
                    self.draft.storages[i] = storage_like(self.draft.storages[i], kind=Kind.TEMP, saved=False)

    def _death(self, i: int) -> int:
        """The op with which the program lets go of `i`, where the trace tells.

        Else the one with which the module returns that `i` was last given to; for what stays in a module its last use.
        """
        if i in self.released:
            return self.released[i]
        life = self.known[i]
        last = max(k for k in life.uses if k < self.first_backward)
        home, user = self.ops[life.made].module, self.ops[last].module
        n = 0
        while n < min(len(home), len(user)) and home[n] == user[n]:
            n += 1
        if len(user) == n:
            return last
        inner = user[: n + 1]
        while last < self.last and self.ops[last + 1].module[: n + 1] == inner:
            last += 1
        return last

    def _move_bytes(self) -> None:
        """Traffic follows the sizes of what ops touch."""
        old, new = self.trace.storages, self.draft.storages
        for k, op in enumerate(self.draft.ops):
            recorded = self.ops[k]
            if op.phase is Phase.STEP or not op.moved_bytes or recorded is op and not any(i in self.types for i in op.reads):
                continue
            before = sum(old[i].nbytes for i in (*recorded.reads, *recorded.writes))
            after = sum(new[i].nbytes for i in (*op.reads, *op.writes))
            if before and after != before:
                self.draft.ops[k] = op_like(op, moved_bytes=op.moved_bytes * after // before)


    def _joined(self, trace: Trace) -> Trace:
        """Autograd adds into a gradient that a cast has made, where the recorded one was a view or somebody's."""
        for k, op in enumerate(self.ops):
            if op.phase is Phase.BACKWARD and op.name == "aten.add.Tensor" and len(op.writes) == 1 and op.reads:
                old, new = op.reads[0], op.writes[0]
                alike = self._type(old) == self._type(new) and self._size(old) == self._size(new)
                if old in self.fresh and self.known[old].freed == k and alike:
                    self.same[new] = self.same.get(old, old)
                    self.sums.add(new)
        return without(trace, self.same, self.sums) if self.same else trace


def _in_order(op: Op, floats: Sequence[int]) -> Sequence[int]:
    """Arguments are cast from the last to the first; a product with a bias reads it first."""
    if base(op.name) == "addmm" and len(floats) == 3:
        return (floats[0], floats[2], floats[1])
    return floats[::-1]


def is_half(storage: Storage) -> bool:
    """True for a storage in a type of two bytes."""
    return storage.dtype in {"float16", "bfloat16"}


def without(trace: Trace, same: Mapping[int, int], sums: Container[int]) -> Trace:
    """`trace` without the storages in `same`, each of which another one stands for; what dies first of two stays.

    Ops that would make them go, or where they are sums, add into their first term.
    """
    ops: list[Op] = []
    for op in trace.ops:
        mine = {i for i in (*op.reads, *op.writes, *(e.storage for e in op.events)) if i in same}
        made = next((i for i in op.writes if i in same and any(e.nbytes > 0 and e.storage == i for e in op.events)), None)
        if made is not None and made in sums:
            gone = {made, op.reads[0]}
            op = op_like(op, name="aten.add_.Tensor", writes=(same[made],), events=_left(op.events, gone))  # noqa: PLW2901
        elif made is not None:
            ops[-1] = op_like(ops[-1], events=(*ops[-1].events, *_left(op.events, {made})))
            continue
        elif mine:
            op = op_like(op, events=_left(op.events, {i for i in mine if i not in sums}))  # noqa: PLW2901
        ops.append(renamed(op, same) if mine else op)
    return replace(trace, ops=tuple(ops), storages={i: s for i, s in trace.storages.items() if i not in same})


def _left(events: Iterable[Event], gone: Container[int]) -> tuple[Event, ...]:
    return tuple(e for e in events if e.storage not in gone)
