"""The whole vocabulary of choices on one page: what a run does beyond the plain step that was recorded.

The default `Plan` changes nothing. Field order is pass order: degrees first, then what changes the ops of a step, then
where its storages lie, then how micro-batches follow each other. Degrees have torchtitan's names.

    --set mesh.dp_shard=8 --set remat.policy=full        Plan(mesh=Mesh(dp_shard=8), remat=Remat(policy="full"))

>>> plan = Plan(mesh=Mesh(tp=2, dp_shard=4), sharding=Sharding(strategy="zero3"))
>>> check(plan)
>>> plan.mesh.world_size
8
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dnnmem.estimator.plan_check import check_all


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Degrees of the device mesh, as in torchtitan; ranks count up in `tp` first, then `cp`, the data axes, `pp`."""

    dp_replicate: int = 1
    """Data-parallel replicas that all-reduce their gradients (DDP; the outer degree of HSDP)."""
    dp_shard: int = 1
    """Ranks that the parameters, gradients or optimizer states of `sharding` are split over."""
    cp: int = 1
    """Context parallel: ranks that share one sequence. Their gradients meet with those of the data axes: zero splits
    over dp_shard * cp ranks, ddp sums over dp_replicate * cp; under no strategy they sum theirs as ddp does."""
    tp: int = 1
    """Tensor parallel: ranks that share each matrix."""
    pp: int = 1
    """Pipeline stages (ranks; a rank may hold several chunks)."""
    ep: int = 1
    """Expert parallel: ranks that the experts are split over, taken from `dp_shard`; not counted again."""

    @property
    def world_size(self) -> int:
        """Number of GPUs."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp * self.pp

    @property
    def data_ranks(self) -> int:
        """Ranks that read different samples."""
        return self.dp_replicate * self.dp_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How many samples a rank takes, and in how many pieces."""

    micro_batch: int | None = None
    """Samples of one forward pass on one rank; None = as recorded."""
    accumulation: int = 1
    """Micro-batches per optimizer step."""
    keep_output: bool = True
    """The program holds the model's output until the step is over; False = it lets go before the backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Element types: those the ops compute in, and those at rest. None = as recorded."""

    compute: str | None = None
    """`float32` (no TF32), `tf32`, `bf16_amp` and `fp16_amp` (autocast; parameters stay in float32), `bfloat16`: what
    the model computes with is cast whole (`model.to`, or FSDP2's `param_dtype` where `param` is wider)."""
    param: str | None = None
    """Of the parameters that the optimizer updates: `float32` over a step recorded in `bfloat16` is FSDP2's mixed
    precision, or Megatron's master weights."""
    grad: str | None = None
    """Of the gradients that the optimizer reads."""
    reduce: str | None = None
    """Of gradients on the wire; None = as `grad`."""
    linear: str | None = None
    """`float8`: linear layers of blocks multiply in 8 bits, scaled by each tensor's largest (torchao; compute
    capability 8.9)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How a cross entropy over many classes is taken: logits and log-probabilities are often a step's largest."""

    chunks: int = 1
    """Pieces of its rows; log-probabilities exist of one piece at a time."""
    fused: bool = False
    """The product with the vocabulary's matrix goes piece by piece too, and its gradients are made with the loss: the
    logits never exist whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Tensor parallelism's options."""

    sequence_parallel: bool = False
    """Split norms, dropouts and residuals along the sequence: all-gather and reduce-scatter for each all-reduce."""
    sequence_first: bool = False
    """Activations are (sequence, batch, ...), as Megatron's: parts of the sequence are gathered without a copy."""
    keep_gathered: bool = False
    """Gathered sequences are kept for the backward pass (DTensor), instead of gathered again (Megatron)."""
    loss_parallel: bool = False
    """Cross entropy over logits split along the vocabulary, never gathered (Megatron; torch's `loss_parallel`)."""
    async_tp: bool = False
    """Products and the gathers and scatters beside them go in pieces, each sent while others are computed (torch's
    async TP, under torch.compile); with `sequence_parallel`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """How the ranks of `mesh.cp`, each with a part of every sequence, do attention over all of it."""

    method: str = "all_gather"
    """`all_gather`: keys and values of all ranks are gathered; `ring`: they go around, a part at a time (both torch's
    `context_parallel`, with causal work balanced by giving each rank an early and a late part); `ulysses`: each rank
    has all of the sequence for a part of the heads, by two all-to-alls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Mixture of experts: how tokens spread over the ranks of `mesh.ep`, and how experts are computed."""

    imbalance: float = 1.0
    """Tokens of the busiest rank, which is predicted, over the mean of all; 1.0 = balanced, at most `mesh.ep`."""
    capacity: float | None = None
    """Room of each expert, in mean numbers of tokens: what is beyond is dropped, what is empty is padded (GShard);
    None = all tokens are kept."""
    grouped: bool = True
    """One grouped product for all experts of a rank; False = a loop over them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """Who updates the parameters. Another algorithm changes the mathematics of training; a kernel does not."""

    name: str | None = None
    """`sgd` (no momentum), `momentum`, `adamw`, `adafactor` (torch's), `adamw8bit` (torchao's), `adamw8bit_bnb`
    (bitsandbytes'); dnnmem's own `lion`, `lamb`, `lars`, `muon`, `shampoo`, `soap` and `galore`; None = as recorded."""
    kernel: str | None = None
    """`for_loop`, `foreach` (lists of tensors) or `fused` (one kernel, no temporaries); None = as recorded."""
    state: str | None = None
    """Type that moments rest in between updates, `bfloat16` or `float16`; None = theirs."""
    in_backward: bool = False
    """Each parameter is updated as soon as its gradient is there, which then goes: gradients never live together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remat:
    """Which activations are computed again in the backward pass."""

    policy: str = "none"
    """`none`; `full`: each block keeps its input only; `every`: each `every`-th block does; `selective`: blocks keep
    matrix products and attention, every second product computed again (torchtitan's `op` policy); `attention`: scores
    and what follows them up to the product with the values (Megatron's selective recompute); `segments`: runs of
    blocks, as `segments` says; `ops`: blocks keep what `keep` names."""
    segments: str = ""
    """For `segments`: blocks, counted from 0 over the model, whose first input alone is kept; nested runs are kept so
    while the outer one is computed again: `0-3(2-3),6` (Rotor's persistent schedules are of this form)."""
    cell: str = ""
    """For `segments`: a module that the model calls for each time step; segments are then of its calls, not of
    blocks."""
    keep: str = ""
    """For `ops`: the ops of a block whose outputs are kept, by name and number, `addmm.0.2,attention`; by block,
    `0-5:all/6-11:addmm.0` (see `keep_text`)."""
    every: int = 1
    """For `every`: 2 = each second block."""
    keep_attention: bool = True
    """For `selective`: attention's output is kept too; False = computed again, its kernel being on no list."""
    early_stop: bool = True
    """Recomputation ends with the last tensor that the backward pass needs, as torch's does; False = it runs the whole
    region again (Megatron, reentrant checkpoints)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """How what is kept for the backward pass is made smaller. Masks lose nothing; codes and projections do."""

    bits: int | None = None
    """8, 4 or 2: activations become codes of so many bits, rounded at random, and signs where a ReLU's gradient takes
    them (ActNN); None = they stay."""
    group: int = 256
    """Elements that share a scale and a zero point."""
    masks: bool = False
    """Truth values take a bit each: of dropouts, and what a ReLU's gradient needs; max-pooling keeps the place in each
    window (Gist)."""
    projection: float | None = None
    """Share of rows to which the inputs of linear layers are projected at random, above 0 and below 1; their weights'
    gradients are right on average. None = they stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """Data parallelism: who holds what, and what is sent."""

    strategy: str = "none"
    """`none` (ranks never meet), `ddp`, `zero1`, `zero2`, `zero3` (FSDP; with `dp_replicate` above 1 HSDP)."""
    even_parts: bool = False
    """zero1, zero2: gradients and updates are split into equal parts while each rank holds all parameters, as in
    Megatron's distributed optimizer and DeepSpeed; False = as PyTorch has it: zero1 gives each parameter to one rank
    (ZeroRedundancyOptimizer), zero2 holds whole parameters from the forward to the backward pass (FSDP2)."""
    reshard_after_forward: bool = True
    """zero3: free gathered parameters after the forward pass, and gather again in the backward pass."""
    keep_last: bool = True
    """zero3 with resharding: the last group's parameters stay until its backward pass, as torchtitan has it."""
    split_root: bool = False
    """zero3: what lies before the blocks, and what lies after them, are groups of their own (torchtitan since July
    2025); else they are gathered with the model, until the end of the step."""
    bucket_mib: int = 25
    """ddp: gradients go in buckets of this size."""
    bucket_views: bool = False
    """ddp, zero1: gradients lie in their buckets, not beside them (`gradient_as_bucket_view`)."""
    prefetch: int = 0
    """zero2, zero3: groups are gathered so many ahead of their use (`set_modules_to_forward_prefetch`, and backward);
    0 = as FSDP2 does by itself."""
    overlap: bool = True
    """Communication runs beside compute; False = after the backward pass, exposed (Megatron before overlap)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """What replicas send each other instead of whole gradients (ddp, and zero1 as PyTorch has it)."""

    compression: str = "none"
    """`none`; `float16`, `bfloat16`: rounded; `topk`: the largest, what is not sent waits (`dgc`: with momentum);
    `qsgd`, `terngrad`: few levels, rounded at random; `signsgd`: signs, what they miss waits; `onebit`: so of Adam's
    first moment, the second one rests (1-bit Adam); `powersgd`: products of narrow matrices, what they miss waits."""
    density: float = 0.01
    """topk, dgc: share of the elements that is sent."""
    bits: int = 8
    """qsgd: of a code, 8, 4 or 2."""
    rank: int = 1
    """powersgd: columns of its matrices."""
    local_steps: int = 1
    """Above 1: gradients are not sent; parameters are averaged after so many steps (local SGD)."""
    warmup: int = 2
    """First steps of a training, which send whole gradients; 2 or more, since buckets change after the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """What rests in the host's memory."""

    activations: str = "none"
    """`none`; `all`: what blocks save for the backward pass is copied to pinned memory as it is made, and back before
    it is needed; `every`: so for each `every`-th block; `blocks`: for those that `blocks` names; `conv`: the inputs of
    convolutions alone."""
    blocks: str = ""
    """For `blocks`: numbers over the model, from 0: `0-3,7`. The last block of a model keeps what it saves."""
    every: int = 1
    """For `every`: 2 = each second block."""
    min_bytes: int = 1 << 20
    """Smaller tensors stay."""
    files: bool = False
    """With `activations`: what is sent goes on into files; the host's memory holds what is on its way."""
    optimizer: bool = False
    """Optimizer states live on the host, and the update runs there: gradients go out, parameters come back."""
    parameters: bool = False
    """With `optimizer`: blocks' parameters rest there too, and are on the GPU while the block runs; so their gradients
    leave as they are made. Where FSDP2 splits parameters, all parts rest there (its `CPUOffloadPolicy`)."""
    resident: int = 0
    """For `parameters`: so many blocks stay on the GPU, spread over the model."""
    disk: bool = False
    """With `optimizer`: its states are in files, which the host's memory holds as far as there is room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How micro-batches pass through the stages."""

    schedule: str = "1f1b"
    """One of `plan_pipeline.PIPELINES`, each a file of `schedules`."""
    chunks: int = 1
    """Model chunks a rank holds: 2 or more for `interleaved`, 2 for `zbv` and `dualpipev`."""
    cuts: str = ""
    """First blocks of the second chunk, the third, ...: `8,16,24`; empty = as even as can be."""
    buffers: bool = True
    """Each micro-batch has places of its own for what is received, as PyTorch's stages do; False = as Megatron's."""
    scatter_gather: bool = True
    """Tensor-parallel ranks that all hold a boundary send a part each, and gather it behind (Megatron, DeepSpeed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """How ops become kernels."""

    fusion: str = "none"
    """`none`: one op, one kernel; `pointwise`: neighbours without a matrix product are one kernel (torch.compile);
    `blocks`: so within each block only (torchtitan compiles block by block); `hand`: as Megatron's own kernels, which
    leave norms, and dropouts beside a softmax, alone."""
    graphs: bool = False
    """CUDA graphs: the host issues a whole pass at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to run the step. Field order is pass order."""

    mesh: Mesh = field(default_factory=Mesh)
    """Degrees."""
    batch: Batch = field(default_factory=Batch)
    """Micro-batch and accumulation."""
    precision: Precision = field(default_factory=Precision)
    """Types at rest."""
    loss: Loss = field(default_factory=Loss)
    """The cross entropy."""
    tensor: Tensor = field(default_factory=Tensor)
    """Tensor parallelism."""
    context: Context = field(default_factory=Context)
    """Context parallelism."""
    experts: Experts = field(default_factory=Experts)
    """Mixture of experts."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """The update."""
    remat: Remat = field(default_factory=Remat)
    """Rematerialization."""
    compression: Compression = field(default_factory=Compression)
    """Smaller activations."""
    sharding: Sharding = field(default_factory=Sharding)
    """Data parallelism."""
    gradients: Gradients = field(default_factory=Gradients)
    """What replicas send."""
    offload: Offload = field(default_factory=Offload)
    """The host's memory."""
    pipeline: Pipeline = field(default_factory=Pipeline)
    """Pipeline parallelism."""
    kernels: Kernels = field(default_factory=Kernels)
    """Fusion and graphs."""

    @property
    def splits_parameters(self) -> bool:
        """True if ranks hold parts of parameters, which are gathered for use: FSDP."""
        sharding = self.sharding
        splits = sharding.strategy == "zero3" or (sharding.strategy == "zero2" and not sharding.even_parts)
        return splits and self.mesh.data_ranks * self.mesh.cp > 1


def check(plan: Plan) -> None:
    """Raise `UsageError` unless every value is one that exists and the fields agree; the message states the rule."""
    check_all(plan)
