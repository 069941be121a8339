r"""How long a step took, by the log of a training run: the median of its lines after the warm-up.

    iter 20: loss 4.1, time 135.20ms             nanoGPT
    elapsed time per iteration (ms): 12345.6     Megatron
    step: 10  loss: 8.1  tps: 5,605  mfu: 29%    torchtitan
    40/100 [00:12<00:18, 3.21it/s]               Trainer
    step 10: 0.123 s     step_time=0.123     350 ms/step     1.9 s/it     12000 tokens/s

>>> read_log("step 1 took 9.1 s\nstep 2 took 0.52 s\nstep 3 took 0.50 s\nstep 4 took 0.51 s\n")
LogTime(seconds=0.51, tokens_per_s=None, lines=3)
>>> read_log("step: 1 tps: 20\nstep: 2 tps: 5,605\nstep: 3 tps: 5,615\n").seconds_of(11_220)
2.0
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

from dnnmem.estimator.errors import UsageError

_NUMBER = r"(\d[\d,]*\.?\d*(?:e[-+]?\d+)?)"
_STEP = r"\b(?:step|iter|iteration|it)"
_PATTERNS = (
    (re.compile(rf"elapsed time per iteration \(ms\):\s*{_NUMBER}", re.IGNORECASE), "ms"),
    (re.compile(rf"{_NUMBER}\s*it/s"), "per_s"),
    (re.compile(rf"{_NUMBER}\s*(?:steps|iterations)/s(?:ec)?", re.IGNORECASE), "per_s"),
    (re.compile(rf"{_NUMBER}\s*ms\s*/\s*(?:it|iter|step)", re.IGNORECASE), "ms"),
    (re.compile(rf"{_NUMBER}\s*s(?:ec)?\s*/\s*(?:it|iter|step)", re.IGNORECASE), "s"),
    (re.compile(rf"\btps:?\s*{_NUMBER}", re.IGNORECASE), "tokens"),
    (re.compile(rf"{_NUMBER}\s*tok(?:ens)?/s(?:ec)?", re.IGNORECASE), "tokens"),
    (re.compile(rf"{_STEP}[_ ]?time\s*(?:\(s\))?\s*[:=]?\s*{_NUMBER}\s*(ms|s)?", re.IGNORECASE), "time"),
    (re.compile(rf"{_STEP}\b.*?\b(?:time|took|dt)\b\s*[:=]?\s*{_NUMBER}\s*(ms|s)", re.IGNORECASE), "time"),
    (re.compile(rf"{_STEP}\b.*?{_NUMBER}\s*(ms|s|sec|seconds)\b", re.IGNORECASE), "time"),
)  # fmt: skip
"""What a line may say, the most certain first."""
WARM_UP = 0.1
"""Of the lines, and at least the first one where there are more than two: they count as warm-up."""


@dataclass(frozen=True, slots=True)
class LogTime:
    """What a log says of a step; one of the two is known."""

    seconds: float | None
    """Of a step."""
    tokens_per_s: float | None
    """Of one GPU, as torchtitan's `tps`."""
    lines: int
    """Lines that count."""

    def seconds_of(self, tokens: float | None) -> float:
        """Seconds of a step of `tokens` on each GPU. Raises `UsageError` where these are needed and not known."""
        if self.seconds is not None:
            return self.seconds
        if not tokens or not self.tokens_per_s:
            raise UsageError("the log gives tokens per second, but the step's tokens are not known", hint="give --seq")
        return tokens / self.tokens_per_s


def read_log(text: str) -> LogTime:
    """The step time of a log. Raises `UsageError` if no line tells one."""
    told = [found for line in text.replace("\r", "\n").splitlines() if (found := _read(line)) is not None]
    if not told:
        raise UsageError(
            "no line of the log tells the time of a step",
            hint="known: 'iter 20: ... time 135.2ms', 'step 10 ... 0.123 s', 'tps: 5,605', '3.2it/s'; or --seconds",
        )
    kind = told[-1][0]
    values = [value for known, value in told if known == kind]
    skipped = max(int(len(values) * WARM_UP), 1 if len(values) > 2 else 0)
    middle = statistics.median(values[skipped:])
    lines = len(values) - skipped
    return LogTime(None, middle, lines) if kind == "tokens" else LogTime(middle, None, lines)


def _read(line: str) -> tuple[str, float] | None:
    for pattern, unit in _PATTERNS:
        found = pattern.search(line)
        if found is None:
            continue
        value = float(found.group(1).replace(",", ""))
        if value <= 0:
            continue
        if unit == "tokens":
            return "tokens", value
        if unit == "per_s":
            return "seconds", 1 / value
        thousandths = unit == "ms" or (unit == "time" and (found.group(2) or "").lower() == "ms")
        return "seconds", value * 1e-3 if thousandths else value
    return None
