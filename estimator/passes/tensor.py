"""Tensor parallelism (Megatron-LM, DTensor): each rank holds a part of every matrix; ranks sum or gather activations.

    plain               x --[W1 / tp]-- h / tp --[W2 / tp]-- all_reduce(x)     backward: all_reduce(dx) before norms
    sequence parallel   x / tp -- all_gather -- [W1 / tp] ... [W2 / tp] -- reduce_scatter -- x / tp

Sequence parallelism (Korthikanti et al. 2022) keeps the stream split along the sequence too, and gathers the saved part
again for the gradients of the matrices. Collectives are COMM ops that the next reader waits for. Which matrices are
split, and how, is *assumed* from the data flow (`tensor_layout`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.estimator.passes.draft import Draft, lives, made_storage
from dnnmem.estimator.passes.precision import AMP, recorded_in
from dnnmem.estimator.passes.remat import PRODUCTS
from dnnmem.estimator.passes.tensor_layout import PARTIAL, SPLIT, STREAM, Layout, check_divides, find_layout
from dnnmem.estimator.passes.tensor_parts import Parts, find_split
from dnnmem.estimator.passes.tensor_pieces import in_pieces
from dnnmem.estimator.passes.tensor_sent import between_softmax, gathered, gathers_with_copy, scattered
from dnnmem.estimator.passes.tensor_sums import ADDED, alone, summed
from dnnmem.estimator.trace import Event, Kind, Lane, Op, Phase, Trace
from dnnmem.estimator.trace_copy import op_like, storage_like

if TYPE_CHECKING:
    from dnnmem.estimator.cluster import Cluster
    from dnnmem.estimator.plan import Plan


def apply(trace: Trace, plan: Plan, cluster: Cluster | None = None) -> Trace:
    """One rank's part of `trace` under `plan.mesh.tp` ranks.

    Raises `UnsupportedError` for a model without a pair of products to split, or whose sizes `tp` does not divide.
    """
    del cluster
    tp = plan.mesh.tp
    if tp == 1:
        return trace
    if recorded_in(trace) in AMP:
        raise UnsupportedError(
            f"tp is {tp}, but the step computes in {recorded_in(trace)}: copies of weights are not split yet",
            hint="--set precision.compute=bfloat16 has no copies; with precision.param=float32 masters are updated",
        )
    layout = find_layout(trace, gather_logits=not plan.tensor.loss_parallel)
    if not layout.row:
        raise UnsupportedError(
            f"tp is {tp}, but {trace.origin.target or 'this step'} has no pair of linear layers to split: a product of "
            "the stream, elementwise ops or attention, and a product back",
            hint="--set mesh.tp=1",
        )
    check_divides(trace, layout, tp)
    split = _Splitter(trace, layout, plan).run()
    return in_pieces(split, tp) if plan.tensor.async_tp else split


class _Splitter:
    """One rewrite; its methods are the steps of `run`."""

    def __init__(self, trace: Trace, layout: Layout, plan: Plan) -> None:
        self.trace, self.layout, self.tp = trace, layout, plan.mesh.tp
        self.keeps = plan.tensor.keep_gathered
        self.dtensor = not plan.tensor.sequence_first and (self.keeps or not plan.tensor.sequence_parallel)
        """As torch's DTensor does it: out of place, and when the sum is asked for; else as Megatron does."""
        self.copied = self.dtensor and gathers_with_copy(trace)
        self.late: set[tuple[int, int]] = set()
        """Sums that are taken right before an op reads them: (op, storage)."""
        self.sequence, self.loss = plan.tensor.sequence_parallel, plan.tensor.loss_parallel
        self.local = plan.mesh.data_ranks > 1 and not plan.splits_parameters
        """Parameters are plain tensors between calls of their modules."""
        self.held = {i: k for k, op in enumerate(trace.ops) for i in op.releases}
        """Op after which the program's variables let go of a storage."""
        self.draft = Draft(trace)
        self.known = lives(trace.ops)
        rows = frozenset((trace.storages[i].module, trace.storages[i].name) for i in layout.row)
        seq = trace.batch.get("seq_len")
        self.parts = Parts(tp=self.tp, rows=rows, seq=seq if isinstance(seq, int) else None)
        self.split = find_split(trace, layout, self.known, sequence=self.sequence)

    def run(self) -> Trace:
        """The rank's trace."""
        self._cost()
        parts = {i: self.parts.of(self.trace.storages[i]) for i in self.split}
        self.draft.resize({i: part.nbytes for i, part in parts.items()})
        self.draft.storages.update(parts)
        for k in sorted(self.layout.summed):
            for i in self.layout.summed[k]:
                self._sum(k, i)
        if self.sequence:
            self._gathers()
        if self.dtensor:
            self._mask()
        self._logits()
        for k, after in self.draft.after.items():  # a module returns when its sum is taken
            after[-1] = op_like(after[-1], releases=self.draft.ops[k].releases)
            self.draft.ops[k] = op_like(self.draft.ops[k], releases=())
        if self.sequence:
            self._replicated_gradients()
        split = self.draft.finish(
            f"Tensor parallel over {self.tp} ranks: which matrices are split, and how, is assumed from the data flow."
        )
        return summed(split, self._added(), local=self.local) if self.dtensor else split

    def _cost(self) -> None:
        """Work of the rank: what it makes is a part, so is its work."""
        matrices, storages, split = self.layout.column | self.layout.row, self.trace.storages, self.split
        for k, op in enumerate(self.trace.ops):
            touched = (*op.reads, *op.writes)
            if split.isdisjoint(touched):
                continue
            made = not split.isdisjoint(op.writes)
            part = made or (op.name in PRODUCTS and not matrices.isdisjoint(op.reads))
            old = new = 0
            for i in touched:
                nbytes = storages[i].nbytes
                old += nbytes
                new += self.parts.nbytes(nbytes) if i in split else nbytes
            events = op.events
            if made and op.phase is not Phase.STEP:
                events = tuple(
                    Event(e.nbytes // self.tp, e.stream, e.storage) if e.storage < 0 and e.nbytes % self.tp == 0 else e
                    for e in events
                )
            self.draft.ops[k] = op_like(
                op,
                flops=op.flops // self.tp if part else op.flops,
                masked_flops=op.masked_flops // self.tp if part else op.masked_flops,
                moved_bytes=op.moved_bytes * new // old if old else op.moved_bytes,
                events=events,
            )

    def _comm(self, kind: str, nbytes: int, k: int, **what: tuple[int, ...] | tuple[Event, ...]) -> Op:
        op = self.trace.ops[k]
        return Op(
            name=f"dnnmem.{kind}.tp",
            module=op.module,
            phase=op.phase,
            lane=Lane.COMM,
            moved_bytes=nbytes,
            **what,  # type: ignore[arg-type]
        )

    def _temporary(self, i: int) -> int:
        """A whole tensor in the place of a part."""
        whole = self.trace.storages[i]
        return self.draft.add(made_storage(whole.nbytes, Kind.COMM, whole.name, whole))

    def _sum(self, k: int, i: int) -> None:
        """Sum over the ranks after op `k`, or scatter sums of parts of the sequence.

        DTensor does so out of place, in the backward pass when the sum is first read: after the gradients of what
        made its terms.
        """
        nbytes, size = self.trace.storages[i].nbytes, self.draft.storages[i].nbytes
        scatters = self.sequence and i in self.split
        if not scatters and not self.dtensor:
            self.draft.after.setdefault(k, []).append(self._comm("all_reduce", nbytes, k, reads=(i,), writes=(i,)))
            return
        later = self.known[i].uses[bisect_right(self.known[i].uses, k) :]
        is_late = self.dtensor and self.trace.ops[k].phase is Phase.BACKWARD and bool(later)
        whole = self._temporary(i)
        for at in range(self.known[i].made, later[0] if is_late else k + 1):
            self._rename(at, i, whole)
        kind = "reduce_scatter" if scatters else "all_reduce"
        events = scattered(nbytes, whole, size, i, copied=self.dtensor and scatters)
        one = self._comm(kind, nbytes, k, reads=(whole,), writes=(i,), events=events)
        if is_late:
            self.late.add((later[0], i))
            self.draft.before.setdefault(later[0], []).append(one)
        else:
            self.draft.after.setdefault(k, []).append(one)

    def _rename(self, at: int, old: int, new: int) -> None:
        op, size = self.draft.ops[at], self.draft.storages[new].nbytes
        if old not in op.reads and old not in op.writes and all(e.storage != old for e in op.events):
            return
        self.draft.ops[at] = op_like(
            op,
            reads=tuple(new if i == old else i for i in op.reads),
            writes=tuple(new if i == old else i for i in op.writes),
            events=tuple(
                Event(size if e.nbytes > 0 else -size, e.stream, new) if e.storage == old else e for e in op.events
            ),
        )

    def _gathers(self) -> None:
        """Gather the sequence before the products that need all of it; one copy serves those that follow."""
        groups: dict[tuple[int, int, Phase], list[int]] = {}
        for k, i in sorted(self.layout.whole_for | (self.layout.biases if self.dtensor else set())):
            if i in self.split:
                phase = Phase.FORWARD if self.keeps else self.trace.ops[k].phase
                groups.setdefault((i, self._written(i, k), phase), []).append(k)
        for (i, _, _), readers in groups.items():
            first, last = readers[0], readers[-1]
            whole, nbytes = self._temporary(i), self.trace.storages[i].nbytes
            for k in readers:
                op = self.draft.ops[k]
                self.draft.ops[k] = op_like(op, reads=tuple(whole if r == i else r for r in op.reads))
            ends = self._part_ends(i, first, readers) if self.keeps else -1
            if self.keeps and self.trace.storages[i].saved:
                self.draft.storages[whole] = storage_like(self.draft.storages[whole], saved=True)
                if (at := self.held.get(i, -1)) >= first:  # a module's argument: the whole goes first
                    releases = tuple(r for j in self.draft.ops[at].releases for r in ((whole, j) if j == i else (j,)))
                    self.draft.ops[at] = op_like(self.draft.ops[at], releases=releases)
            self._free(max(last, ends), whole, first=ends < 0 and self.trace.ops[first].phase is Phase.BACKWARD)
            # a gather for a matrix's gradient runs beside the product before it
            early = (
                self.trace.ops[first].phase is Phase.BACKWARD and first and self.trace.ops[first - 1].name in PRODUCTS
            )
            at = first
            if early and i not in self.trace.ops[first - 1].writes and (first, i) not in self.late:
                at = first - 1
            events = gathered(nbytes, whole, copied=self.copied)
            gather = self._comm("all_gather", nbytes, first, reads=(i,), writes=(whole,), events=events)
            self.draft.before.setdefault(at, []).append(gather)

    def _part_ends(self, i: int, first: int, readers: Sequence[int]) -> int:
        """Nothing but gathers needs the part, and the whole is kept: it goes when it is gathered.

        Returns the op that freed it in the plain step, where the whole goes now; -1 if the part stays.
        """
        life = self.known[i]
        if i not in self.draft.pinned and life.freed > first and not any(k > first for k in {*life.uses} - {*readers}):
            self.draft.unfree(life.freed, i)
            self._free(max(first, self.held.get(i, -1)), i)
            return life.freed
        return -1

    def _free(self, k: int, i: int, *, first: bool = False) -> None:
        """Free a storage after op `k` and what follows it already; or `first` of all that the op frees."""
        event, after = Event(-self.draft.storages[i].nbytes, 0, i), self.draft.after.get(k)
        op = after[-1] if after and not first else self.draft.ops[k]
        at = next((n for n, e in enumerate(op.events) if e.nbytes < 0 <= e.storage), None) if first else None
        at = len(op.events) if at is None else at
        op = op_like(op, events=(*op.events[:at], event, *op.events[at:]))
        if after and not first:
            after[-1] = op
        else:
            self.draft.ops[k] = op

    def _written(self, i: int, k: int) -> int:
        """The last op before `k` that writes it, -1 if none does."""
        uses = self.known[i].uses
        before = range(bisect_left(uses, k) - 1, -1, -1)
        return next((uses[at] for at in before if i in self.trace.ops[uses[at]].writes), -1)

    def _mask(self) -> None:
        """The gradient of a table takes a copy of the stream's, 0 where another rank has the row."""
        for k, op in enumerate(self.draft.ops):
            if op.name.startswith("aten.embedding_dense_backward") and not self.split.isdisjoint(op.writes):
                i, gone = op.reads[0], set(op.frees) - set(op.writes)
                if i not in gone:
                    continue
                like = self.draft.storages[i]
                masked = self.draft.add(made_storage(like.nbytes, Kind.TEMP, like.name, like))
                made, freed = Event(like.nbytes, 0, masked), Event(-like.nbytes, 0, i)
                before = tuple(e for e in op.events if e.storage in gone - {i})
                copy = Op(
                    name="aten.masked_fill.Scalar", module=op.module, phase=op.phase, reads=(i,), writes=(masked,),
                    events=(*before, made, freed), moved_bytes=2 * like.nbytes,
                )  # fmt: skip
                self.draft.before.setdefault(k, []).append(copy)
                kept = tuple(e for e in op.events if e.storage not in gone)
                self.draft.ops[k] = op_like(
                    op, reads=(masked, *op.reads[1:]), events=(*kept, Event(-like.nbytes, 0, masked))
                )

    def _logits(self) -> None:
        """Logits are gathered, or the sums of the loss are taken over the ranks (largest logit, sum, the target's)."""
        for k in self.layout.head:
            out = self.trace.ops[k].writes[0]
            if not self.loss:
                self._gather_logits(k, out)
        if not self.loss and self.dtensor:
            for i, reader in self.layout.sliced.items():
                self._slice_gradient(i, reader)
        if not self.loss or not self.layout.head:
            return
        for k, states in enumerate(self.layout.state):
            op = self.trace.ops[k]
            if SPLIT in states.values() and "_log_softmax" in op.name:
                self._exponentials(k)
            if op.phase is Phase.FORWARD and SPLIT in states.values() and "_log_softmax" in op.name:
                logits = self.trace.storages[op.writes[0]]
                rows = logits.nbytes // 4 // max(1, logits.shape[-1] if logits.shape else 1)
                sums = 3 * 4 * rows  # largest logit, sum of exponentials, the target's
                self.draft.after.setdefault(k, []).append(
                    self._comm("all_reduce", sums, k, reads=(op.writes[0],), writes=(op.writes[0],))
                )

    def _exponentials(self, k: int) -> None:
        """Without a fused kernel for a part of the vocabulary, what is in between are tensors, in both passes."""
        op = self.draft.ops[k]
        self.draft.ops[k] = op_like(op, events=between_softmax(op.events, forward=op.phase is Phase.FORWARD))

    def _gather_logits(self, k: int, out: int) -> None:
        whole = self.trace.storages[out]
        part = self.draft.add(made_storage(self.parts.of(whole).nbytes, Kind.COMM, whole.name, self.parts.of(whole)))
        self._rename(k, out, part)
        op = self.draft.ops[k]
        flops, moved = op.flops, op.moved_bytes
        if not any(i in self.split for i in op.reads):
            flops //= self.tp
        self.draft.ops[k] = op_like(op, flops=flops, moved_bytes=moved)
        size = self.draft.storages[part].nbytes
        padded = size * self.tp if self.dtensor else 0
        events = (*gathered(whole.nbytes, out, copied=self.dtensor, padded=padded), Event(-size, 0, part))
        self.draft.after.setdefault(k, []).append(
            self._comm("all_gather", whole.nbytes, k, reads=(part,), writes=(out,), events=events)
        )

    def _slice_gradient(self, i: int, reader: int) -> None:
        """The rank's part of the whole gradient of logits is copied out, and the rest goes."""
        whole = self.draft.storages[i]
        part = self.draft.add(made_storage(self.parts.of(whole).nbytes, Kind.TEMP, whole.name, self.parts.of(whole)))
        size = self.draft.storages[part].nbytes
        for at in range(reader, len(self.draft.ops)):
            self._rename(at, i, part)
        op = self.trace.ops[reader]
        copy = Op(
            name="dnnmem.copy_out.tp", module=op.module, phase=op.phase, reads=(i,), writes=(part,),
            moved_bytes=2 * size, events=(Event(size, 0, part), Event(-whole.nbytes, 0, i)),
        )  # fmt: skip
        self.draft.before.setdefault(reader, []).append(copy)

    def _replicated_gradients(self) -> None:
        """Gradients of what no rank holds a part of (norms) are sums over parts of the sequence."""
        last = max((k for k, op in enumerate(self.trace.ops) if op.phase is Phase.BACKWARD), default=-1)
        found = alone(self.trace, self.known, last, self.split)
        if found:
            nbytes = sum(self.trace.storages[i].nbytes for i in found)
            op = self._comm("all_reduce", nbytes, last, reads=found, writes=found)
            # once a step, however many micro-batches it has
            self.draft.after.setdefault(last, []).append(op_like(op, phase=Phase.STEP, module=("<optimizer>",)))

    def _added(self) -> list[int]:
        """Sums of gradients that are DTensors: before ranks' terms meet, of the stream's parts, of shared matrices."""
        found: dict[int, None] = {}
        for k, op in enumerate(self.trace.ops[: len(self.layout.state)]):
            if op.name != ADDED or op.phase is not Phase.BACKWARD:
                continue
            i = op.writes[0]
            state = self.layout.state[k].get(i)
            shared = self.trace.storages[i].kind is Kind.GRAD and self.known[i].made >= 0 and not self.local
            if state is PARTIAL or (state is STREAM and i in self.split) or (state is SPLIT and shared):
                found[self.draft.ops[k].writes[0]] = None
        return list(found)
