"""What torch.compile does on a virtual GPU: which kernels it takes where a real GPU would time them, and what it made.

Compiling is real: Dynamo, Inductor, Triton and ptxas run, and what they put on the GPU is allocated. Only the choice
among several kernels that would all do comes from timing them, and a virtual GPU has no times. It is fixed instead:

    matrix product, attention   the library's own kernel (ATen) where it is a choice, else the first that compiles
    Triton kernel               the first configuration that compiles; coordinate descent stays where it starts
    misaligned matrix product   padded, wherever Inductor would have measured whether padding pays

The chosen kernel is benchmarked as on a real GPU, so the benchmark's inputs and its buffer that clears the GPU's L2
cache are in the peak; the others are not even compiled.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from dnnmem.profilers.script_imports import after_import

_TUNED = "where Inductor times kernels, ATen's own is taken, else the first that compiles"
_CONFIGURED = "where Triton kernels are timed, the first configuration that compiles is taken"
_PADDED = "matrix products are padded wherever Inductor measures whether that pays"


class FixedChoices:
    """Those choices, in force from the moment the module that makes them is imported, until the process ends."""

    def __init__(self, *, pass_through: bool) -> None:
        """Wait for the modules; none is imported for it. `pass_through`: true small values are in force."""
        self.made: Counter[str] = Counter()
        """How often a choice was made, by rule."""
        self._waiting = ExitStack()
        if pass_through:
            _pass_through()
        for name, change in (
            ("torch._inductor.select_algorithm", self._templates),
            ("torch._inductor.runtime.triton_heuristics", self._kernels),
            ("torch._inductor.runtime.coordinate_descent_tuner", self._descent),
            ("torch._inductor.fx_passes.pad_mm", self._padding),
            ("triton.runtime.autotuner", self._triton),
            ("torch._dynamo.trace_rules", _leave_alone),
        ):
            if name in sys.modules:
                change()
            else:
                self._waiting.enter_context(after_import(name, change))

    def notes(self) -> list[str]:
        """What was compiled and what was chosen, in sentences."""
        return [*compiled(), *(f"{rule} ({count} times)" for rule, count in sorted(self.made.items()))]

    def _templates(self) -> None:
        """Kernels that Inductor selects one of: `max_autotune`, flex attention."""
        module = sys.modules["torch._inductor.select_algorithm"]
        cache, caller = module.AlgorithmSelectorCache, module.TritonTemplateCaller
        make, extern = cache.make_benchmark_fn, module.ExternKernelCaller

        def make_one(*args: Any, **kwargs: Any) -> Callable[[Sequence[Any]], dict[Any, float]]:
            benchmark = make(*args, **kwargs)

            def first(choices: Sequence[Any]) -> dict[Any, float]:
                self.made[_TUNED] += len(choices) > 1
                ordered = sorted(choices, key=lambda choice: not isinstance(choice, extern))
                return {**dict.fromkeys(choices, math.inf), **first_finite(benchmark, ordered)}

            return first

        cache.make_benchmark_fn = staticmethod(make_one)
        caller.precompile = lambda _: None

    def _kernels(self) -> None:
        """Inductor's generated kernels: all configurations are the first one that compiles."""
        tuner = sys.modules["torch._inductor.runtime.triton_heuristics"].CachingAutotuner
        compile_one, tune = tuner._precompile_config, tuner.autotune_to_one_config

        def compile_first(self: Any, *args: Any, **kwargs: Any) -> Any:
            known = self.__dict__.get("_dnnmem_first")
            if known is None:
                known = self._dnnmem_first = compile_one(self, *args, **kwargs)
            return known

        def tuned(it: Any, *args: Any, **kwargs: Any) -> Any:
            self.made[_CONFIGURED] += 1
            it.launchers = it.launchers[:1]
            return tune(it, *args, **kwargs)

        tuner._precompile_config, tuner.autotune_to_one_config = compile_first, tuned

    def _descent(self) -> None:
        """`coordinate_descent_tuning`: the start is timed, as on a GPU, and kept."""
        tuner = sys.modules["torch._inductor.runtime.coordinate_descent_tuner"].CoordescTuner

        def stay(_: Any, func: Callable[[Any], float], baseline_config: Any, baseline_timing: Any = None) -> Any:
            self.made[_CONFIGURED] += 1
            if baseline_timing is None:
                func(baseline_config)
            return baseline_config

        tuner.autotune = stay

    def _padding(self) -> None:
        """Padding of matrix products, of which torch itself can leave out the comparison."""
        module = sys.modules["torch._inductor.fx_passes.pad_mm"]
        module._skip_do_bench_times = True  # type: ignore[attr-defined]
        remember = module.set_cached_should_pad

        def remembered(key: str, value: bool) -> None:  # noqa: FBT001 - torch's own signature
            self.made[_PADDED] += 1
            remember(key, value)

        module.set_cached_should_pad = remembered  # type: ignore[attr-defined]

    def _triton(self) -> None:
        """`triton.autotune`, of libraries and users."""
        tuner = sys.modules["triton.runtime.autotuner"].Autotuner
        prune, bench = tuner.prune_configs, tuner._bench

        def pruned(it: Any, *args: Any, **kwargs: Any) -> Any:
            self.made[_CONFIGURED] += 1
            it._dnnmem_found = False
            return prune(it, *args, **kwargs)

        def first(it: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(it, "_dnnmem_found", False):
                return [math.inf] * 3
            timing = bench(it, *args, **kwargs)
            it._dnnmem_found = math.isfinite(timing[0] if isinstance(timing, Sequence) else timing)
            return timing

        tuner.prune_configs, tuner._bench = pruned, first


def _leave_alone() -> None:
    """Let Dynamo run dnnmem's own functions as they are: they are called from within a model's."""
    sys.modules["torch._dynamo.trace_rules"].add("dnnmem.profilers")


def _pass_through() -> None:
    """Let higher-order operators (flex attention, checkpointing) pass the dispatch key that `gpu_values.py` uses."""
    from dnnmem.profilers.gpu_values import KEY

    operators = sys.modules["torch._ops"]
    own = getattr(sys.modules["torch"]._C.DispatchKey, KEY)
    operators._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS.append(own)
    for operator in operators._higher_order_ops.values():
        operator.fallthrough(own)
    _leave_in_force(sys.modules["torch"], KEY)


def _leave_in_force(torch: Any, key: str) -> None:
    """Let torch.compile put off autocast, but not `key`, which is one of its keys and which no autocast uses."""
    members = torch._C.DispatchKey.__members__
    autocast = [value for name, value in members.items() if name.startswith("Autocast") and name != key]
    keys = torch._C.DispatchKeySet(autocast[0])
    for other in autocast[1:]:
        keys = keys.add(other)
    torch._C._DisableAutocast = partial(torch._C._ExcludeDispatchKeyGuard, keys)
    torch._C._is_any_autocast_enabled = lambda: any(map(torch.is_autocast_enabled, ("cpu", "cuda")))


def first_finite(benchmark: Callable[[Sequence[Any]], Mapping[Any, float]], choices: Sequence[Any]) -> dict[Any, float]:
    """Times of `choices`, in their order, up to the first that works.

    >>> first_finite(lambda names: {name: {"a": math.inf}.get(name, 2.0) for name in names}, ["a", "b", "c"])
    {'a': inf, 'b': 2.0}
    """
    times: dict[Any, float] = {}
    for choice in choices:
        times.update(benchmark([choice]))
        if math.isfinite(times[choice]):
            break
    return times


def graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    return int(_counters().get("stats", {}).get("unique_graphs", 0))


def compiled() -> list[str]:
    """What torch.compile has made in this process, as a sentence; none where it made nothing."""
    if not graphs():
        return []
    frames = _counters().get("frames", {}).get("ok", 0)
    breaks = sum(_counters().get("graph_break", {}).values())
    broken = f", {_count(breaks, 'graph break')}" if breaks else ""
    return [f"compiled by torch.compile: {_count(graphs(), 'graph')} of {_count(frames, 'frame')}{broken}"]


def _counters() -> Mapping[str, Mapping[str, int]]:
    """Dynamo's own, if it is loaded."""
    return getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
