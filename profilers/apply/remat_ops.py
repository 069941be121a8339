"""Rematerialization op by op: blocks keep the outputs of the ops that `Remat.keep` names, and compute the rest again.

    forward     norm  addmm*  attention*  addmm  add        * kept: handed out when the block runs again
    again       norm   ...       ...      addmm  add        random numbers go on behind a kept op as they did before

It is torch's selective checkpoint with a policy that counts ops of a name. Torch alone would draw other random numbers
behind a kept op that draws some, as that op does not run again: what its generator was left at is kept beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from dnnmem.estimator.errors import UsageError
from dnnmem.estimator.keep_text import Rule, absent, absent_error, base_name, parse_keep, rule_of
from dnnmem.estimator.plan import Remat
from dnnmem.estimator.segments import Run
from dnnmem.profilers.apply.regions import compute_again
from dnnmem.profilers.tensors import tensors_in

Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
"""What a region's first computation runs in, and what its second one does."""
Policy = Callable[..., CheckpointPolicy]
"""Of an op that ran: whether its outputs stay."""
_States = dict[tuple[Any, int], tuple[torch.device, Tensor]]
_Seen = dict[bool, Counter[str]]
"""By whether it is the second computation, and by name: ops so far."""
_SAVE = (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE)


def keep_ops(blocks: Sequence[tuple[str, nn.Module]], remat: Remat) -> None:
    """Let each of `blocks` compute again what its rule does not keep. Raises `UsageError` for blocks that are not."""
    rules = parse_keep(remat.keep, len(blocks))
    for n in range(len(blocks)):
        rule = rule_of(rules, n)
        if rule is not None and not rule.whole:
            contexts = partial(_contexts, rule, blocks[n])
            compute_again(blocks, (Run(first=n, last=n),), contexts=contexts, early_stop=remat.early_stop)


def selective_contexts(policy: Policy) -> Contexts:
    """Torch's contexts for `policy`, with random numbers as they were. Older torch asks it in both computations."""
    states: _States = {}
    first, again = create_selective_checkpoint_contexts(partial(_noting, policy, states, Counter()))
    return first, _with_random(again, states)


def _contexts(rule: Rule, block: tuple[str, nn.Module]) -> Contexts:
    """Those of one computation of a block, and of its repetition."""
    seen: _Seen = {False: Counter(), True: Counter()}
    first, again = selective_contexts(partial(_keeping, rule, block[0], seen))
    return _checked(first, rule, block, seen[False]), again


def _keeping(rule: Rule, block: str, seen: _Seen, context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    name, counts = base_name(str(operator)), seen[context.is_recompute]
    number = counts[name]
    counts[name] += 1
    if not rule.keeps(name, number):
        return CheckpointPolicy.PREFER_RECOMPUTE
    if any(result.alias_info for result in operator._schema.returns):
        if rule.ops.get(name):
            raise UsageError(
                f"remat.keep names {name}.{number}, which changes a tensor in place in {block}, or is a view; both are "
                "done again",
                hint="leave it out",
            )
        return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE


@contextmanager
def _checked(
    first: AbstractContextManager[Any], rule: Rule, block: tuple[str, nn.Module], seen: Counter[str]
) -> Iterator[None]:
    """`first`, and at its end an error for ops that the rule names and a GPU did not run; a CPU runs some by others."""
    with first:
        yield
    name, module = block
    on_cpu = all(p.device.type == "cpu" for p in module.parameters())
    if not on_cpu and (missing := absent(rule, seen)):
        raise absent_error(name, missing, seen)


def _noting(policy: Policy, states: _States, seen: Counter[Any], *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Ask the policy, and note where a kept op that drew random numbers left its generator."""
    context, operator, *given = args
    answer = policy(*args, **kwargs)
    if torch.Tag.nondeterministic_seeded in operator.tags and not context.is_recompute:
        if answer in _SAVE:
            device = next((t.device for t in tensors_in((*given, *kwargs.values()))), torch.device("cpu"))
            states[operator, seen[operator]] = (device, _random_state(device))
        seen[operator] += 1
    return answer


@contextmanager
def _with_random(again: AbstractContextManager[Any], states: _States) -> Iterator[None]:
    with again:
        if not states:
            yield
            return
        with _RandomOn(states):
            yield


class _RandomOn(TorchDispatchMode):
    """Behind a kept op, random numbers go on from where it left them."""

    def __init__(self, states: _States) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._states = states
        self._seen: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            if state := self._states.get((func, self._seen[func])):
                _set_random_state(*state)
            self._seen[func] += 1
        return output


def _random_state(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)
