"""Which modules of a model are experts: by HF's own plan, else by what they hold and what they take (*assumed*).

    experts(tokens (T, D), chosen (T, k), weights (T, k)) -> (T, D)        parameters (E, ...), all of them

That is the form of transformers' mixtures of experts (Mixtral, Qwen, DeepSeek, OLMoE, GPT-OSS, ...): one module holds
all experts of a layer, the router is outside. Their classes are not named here: what has the form is one.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dnnmem.estimator.errors import UnsupportedError

COUNT = "num_experts"
"""Attribute of such a module: how many experts it holds."""
_TAKEN = 3
"""Arguments: tokens, choices, weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Modules that hold the experts of a layer each."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    """By name, in the order of the model."""
    assumed: bool = True
    """False = the model's own plan names them."""


def find_experts(model: nn.Module, ep: int) -> Experts:
    """The experts of `model`. Raises `UnsupportedError` for a model without, or where `ep` does not divide them."""
    found = {name: module for name, module in model.named_modules() if _has_form(module)}
    if not found:
        raise UnsupportedError(
            f"ep is {ep}, but {type(model).__name__} has no module that holds experts as parameters (experts, ...) and "
            "takes tokens, choices and weights",
            hint="--set mesh.ep=1",
        )
    for name, module in found.items():
        count = getattr(module, COUNT)
        if count % ep:
            raise UnsupportedError(f"{name} holds {count} experts; {count} % ep {ep} = {count % ep}, but it must be 0")
    return Experts(modules=found, assumed=not _named_by(model))


def _has_form(module: nn.Module) -> bool:
    """Whether all parameters begin with the experts, and the call takes tokens, choices and weights."""
    count = getattr(module, COUNT, None)
    own = list(module.parameters())
    if not isinstance(count, int) or not own or any(p.dim() < 2 or p.shape[0] != count for p in own):
        return False
    if not any(p.dim() == _TAKEN for p in own):
        return False
    return len(arguments_of(module)) == _TAKEN


def arguments_of(module: nn.Module) -> list[str]:
    """Names of what the module's call takes."""
    known = list(inspect.signature(type(module).forward).parameters.values())[1:]
    return [p.name for p in known if p.kind is p.POSITIONAL_OR_KEYWORD]


def _named_by(model: nn.Module) -> bool:
    """Whether the configuration says itself which parameters are experts."""
    config: Any = getattr(model, "config", None)
    plan = getattr(config, "base_model_ep_plan", None) or {}
    return any(how == "grouped_gemm" for how in plan.values())
