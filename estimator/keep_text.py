"""Which ops of its blocks a step keeps, as text: what `Remat.keep` says; all others are computed again.

    addmm.0.2,attention,gelu            every block keeps its first and third addmm, its attention, all its gelus
    0-5:all/6-10,12:addmm.0/11:input    blocks 0 to 5 keep all, as blocks that are not named do; 11 its input only
    products                            what takes long: matrix products, convolutions, attention. Norms, activations,
                                        concatenations run again (as in-place ABN, Bulo et al. 2018; DenseNet, Pleiss
                                        et al. 2017)

An op is named without its overload, and as its in-place twin is; `attention` is any fused one. Ops of a name are
counted from 0 in the order in which a block runs them.

>>> rules = parse_keep("0-5:all/6-11:addmm.0.2,attention")
>>> rule_of(rules, 7).keeps("addmm", 2), rule_of(rules, 7).keeps("addmm", 1), rule_of(rules, 12)
(True, False, None)
>>> keep_text(rules)
'0-5:all/6-11:addmm.0.2,attention'
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from dnnmem.estimator.errors import UsageError

_ITEM = re.compile(r"([A-Za-z_]\w*)((?:\.\d+)*)")
_BLOCKS = re.compile(r"(\d+)(?:-(\d+))?")
INPUT, ALL, PRODUCTS = "input", "all", "products"
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "attention"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What some blocks keep."""

    blocks: tuple[tuple[int, int], ...] = ()
    """First and last of each run of blocks, counted over the model; empty = every block."""
    whole: bool = False
    """True if they keep all: nothing is computed again."""
    ops: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By name the numbers of those that are kept; an empty tuple = all of the name."""

    def keeps(self, name: str, number: int) -> bool:
        """True if the op of that name and number is kept."""
        numbers = self.ops.get(PRODUCTS if name in _PRODUCTS and PRODUCTS in self.ops else name)
        return self.whole or (numbers is not None and (not numbers or number in numbers))


def base_name(name: str) -> str:
    """The name of an op as rules have it.

    >>> base_name("aten.add_.Tensor"), base_name("aten._scaled_dot_product_flash_attention.default")
    ('add', 'attention')
    """
    if is_attention(name):
        return "attention"
    parts = name.split(".")
    return parts[1 if len(parts) > 1 else 0].rstrip("_")


def is_attention(name: str) -> bool:
    """True for the name of a fused attention's op."""
    return ("_attention" in name and "scaled_dot_product" in name) or "flash_attn" in name


def parse_keep(text: str, count: int | None = None) -> tuple[Rule, ...]:
    """The rules that `text` holds. Raises `UsageError` for others: two for a block, or one for none of `count`."""
    rules = tuple(_rule(part.strip(), text) for part in text.split("/"))
    runs = sorted(run for rule in rules for run in rule.blocks)
    if len(rules) > 1 and not all(rule.blocks for rule in rules):
        raise _wrong(text, "of several rules each begins with its blocks")
    for (_, last), (first, _) in pairwise(runs):
        if first <= last:
            raise _wrong(text, f"block {first} has two rules")
    if count is not None and runs and max(last for _, last in runs) >= count:
        raise _wrong(text, f"the model has {count} blocks, 0 to {count - 1}")
    return rules


def rule_of(rules: Sequence[Rule], block: int) -> Rule | None:
    """The rule of a block; None if it has none: it keeps all."""
    for rule in rules:
        if not rule.blocks or any(first <= block <= last for first, last in rule.blocks):
            return rule
    return None


def keep_text(rules: Sequence[Rule]) -> str:
    """What `parse_keep` reads."""
    found = []
    for rule in rules:
        blocks = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in rule.blocks)
        ops = ",".join(".".join([name, *map(str, numbers)]) for name, numbers in rule.ops.items())
        found.append((f"{blocks}:" if blocks else "") + (ALL if rule.whole else ops or INPUT))
    return "/".join(found)


def absent(rule: Rule, seen: Mapping[str, int]) -> str:
    """The first op of a rule that a block lacks which runs so many of each name as `seen` says; empty if none is."""
    for name, numbers in rule.ops.items():
        count = sum(seen.get(known, 0) for known in _PRODUCTS) if name == PRODUCTS else seen.get(name, 0)
        if not count or any(number >= count for number in numbers):
            return ".".join([name, *(str(n) for n in numbers if n >= count)])
    return ""


def absent_error(block: str, missing: str, seen: Mapping[str, int]) -> UsageError:
    """The error for an op that a rule names and a block does not run."""
    known = ", ".join(name if count == 1 else f"{name}.0-{count - 1}" for name, count in sorted(seen.items()) if name)
    return UsageError(f"remat.keep names {missing}, but {block} has no such op", hint=f"it runs {known}")


def _rule(part: str, text: str) -> Rule:
    head, colon, tail = part.rpartition(":")
    blocks = []
    for run in head.split(",") if colon else ():
        match = _BLOCKS.fullmatch(run.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise _wrong(text, f"{run!r} is no block, nor two that count up with '-' between")
        blocks.append((int(match[1]), int(match[2] or match[1])))
    items = [item.strip() for item in tail.split(",")]
    if items in ([ALL], [INPUT]):
        return Rule(blocks=tuple(blocks), whole=items == [ALL])
    ops: dict[str, tuple[int, ...]] = {}
    for item in items:
        match = _ITEM.fullmatch(item)
        if match is None or match[1] in (ALL, INPUT) or match[1] in ops or (match[1] == PRODUCTS and match[2]):
            raise _wrong(text, f"{item!r} is no op, or one that is named twice")
        ops[match[1]] = tuple(int(number) for number in match[2].split(".")[1:])
    return Rule(blocks=tuple(blocks), ops=ops)


def _wrong(text: str, rule: str) -> UsageError:
    return UsageError(f"remat.keep is {text!r}; {rule}", hint="--set remat.keep=0-3:all/4-7:addmm.0.2,attention")
