"""What one call asks of the device and which curve it belongs to, as the time model will see it in a recorded step.

The call runs once under a dispatch mode; its largest operator goes through `work_of`, so that what is measured here is
found again there, whatever the release of PyTorch calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dnnmem.estimator.measured_rates import curve_of
from dnnmem.estimator.trace import Kind, Op, Storage, Trace
from dnnmem.estimator.work import Work, work_of
from dnnmem.profilers.flops import masked_flops, op_cost
from dnnmem.profilers.tensors import tensors_in


class _Watch(TorchDispatchMode):
    """Notes operators and the storages they touch; no memory, no modules."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.storages: dict[int, Storage] = {}
        self._ids: dict[int, int] = {}
        self._held: list[Tensor] = []

    def _numbers(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        numbers = []
        for tensor in tensors:
            self._held.append(tensor)  # an address is not given to another tensor meanwhile
            number = self._ids.setdefault(tensor.untyped_storage()._cdata, len(self._ids))
            nbytes = tensor.untyped_storage().nbytes()
            dtype = str(tensor.dtype).removeprefix("torch.")
            shape = tuple(tensor.shape)
            self.storages.setdefault(
                number, Storage(id=number, nbytes=nbytes, kind=Kind.TEMP, shape=shape, dtype=dtype)
            )
            numbers.append(number)
        return tuple(dict.fromkeys(numbers))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not getattr(func, "is_view", False):
            reads, made = self._numbers(tensors_in((*args, *kwargs.values()))), self._numbers(tensors_in((out,)))
            flops, moved = op_cost(func, args, kwargs, out)
            masked = masked_flops(func, args, kwargs, flops)
            op = Op(name=str(func), reads=reads, writes=made, flops=flops, masked_flops=masked, moved_bytes=moved)
            self.ops.append(op)
        return out


def watch(run: Callable[[], object]) -> Work:
    """The table of the operators of one call."""
    with _Watch() as seen:
        run()
    return work_of(Trace(ops=tuple(seen.ops), storages=seen.storages))


def curve_point(run: Callable[[], object]) -> tuple[str, float, float]:
    """Curve and size of the largest operator of a call, and how many of that size the operator is."""
    work = watch(run)
    largest = max(range(len(work.names)), key=lambda i: (work.flops[i], work.bytes[i]))
    return curve_of(work, largest)
