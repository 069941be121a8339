"""1-bit Adam's second half: once ranks send first moments, AdamW takes those as they come, and second moments rest.

    first steps   m = b1 m + (1 - b1) g     v = b2 v + (1 - b2) g^2     p -= lr m' / (sqrt(v') + eps)      AdamW
    then          m = what came             v stays                     p -= lr m' / (sqrt(v') + eps)

m' and v' are corrected for their start from zero: v' by the step in which v came to rest. After Tang et al. 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.apply.gradient_hooks import Hook


def rest_second_moments(optimizer: Optimizer, hook: Hook) -> None:
    """Let `optimizer` update by what `hook` brings. Raises `UnsupportedError` for any but a plain AdamW."""
    odd = [name for name in ("amsgrad", "maximize", "fused") if optimizer.defaults.get(name)]
    betas = {tuple(group.get("betas", ())) for group in optimizer.param_groups}
    if type(optimizer) is not AdamW or odd or len(betas) > 1:
        raise UnsupportedError(
            f"gradients.compression is onebit, which sends AdamW's first moments, but the optimizer is "
            f"{' '.join(odd)} {type(optimizer).__name__} with {len(betas)} pairs of betas",
            hint="--set optimizer.name=adamw --set optimizer.kernel=foreach; or --set gradients.compression=signsgd",
        )
    hook.optimizer = optimizer
    step: Callable[..., Any] = optimizer.step
    hooked: Any = Optimizer.profile_hook_step
    update = hooked(lambda self: _update(self, hook.wanted.warmup))  # with what others hang on a step

    def each_step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if hook.steps > hook.wanted.warmup:  # the hook has counted this step already
            return update(optimizer)
        return step(*args, **kwargs)

    optimizer.step = MethodType(each_step, optimizer)  # type: ignore[method-assign]


@torch.no_grad()
def _update(optimizer: Optimizer, rested: int) -> None:
    """One step in which second moments have rested since step `rested`."""
    for group in optimizer.param_groups:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            continue
        states = [optimizer.state[p] for p in params]
        first, second = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        for state in states:
            state["step"] += 1
        beta1, beta2 = group["betas"]
        torch._foreach_copy_(first, [p.grad for p in params])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        lengths = torch._foreach_sqrt(second)
        torch._foreach_div_(lengths, (1 - beta2**rested) ** 0.5)
        torch._foreach_add_(lengths, group["eps"])
        torch._foreach_addcdiv_(params, first, lengths, -group["lr"] / (1 - beta1 ** float(states[0]["step"])))
