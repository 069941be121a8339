"""Lets one process be rank r of N without the other N-1: nothing waits for them, and what they would send is made up.

    rendezvous      a store of this process alone, which knows an answer to every key
    NCCL            the virtual GPU's: collectives succeed at once
    gloo            torch's own stand-in, FakeProcessGroup
    objects         what this rank has is what every other one has
    integers        from one rank to another they are true (shapes, objects over NCCL): whoever sends them runs too

So rank 0 of 1,024 costs one process. Where a rank cannot go on without another one's data, an error says so.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import distributed
from torch._C._distributed_c10d import FakeProcessGroup, Store
from torch.distributed import distributed_c10d

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.script_imports import when_loaded
from dnnmem.profilers.script_objects import carry_objects
from dnnmem.profilers.virtual_gpu.groups import tell_peers, tell_split_sizes

_meeting: Any = importlib.import_module("torch.distributed.rendezvous")  # a function of that name hides the module
_PLANNER = "torch.distributed.checkpoint.default_planner"
_NCCL_ID = bytes(128)
"""What a rank that is not the first reads as NCCL's unique id; the virtual NCCL asks nothing of it."""


class LoneStore(Store):
    """A key-value store whose other users have always been there before."""

    def __init__(self, world_size: int) -> None:
        """`world_size`: how many are waited for at a barrier."""
        super().__init__()
        self._values: dict[str, bytes] = {}
        self._world_size = world_size

    def clone(self) -> LoneStore:
        """The same store, as a second connection would be."""
        return self

    def set(self, key: str, value: bytes | str) -> None:
        """Keep a value."""
        self._values[key] = value.encode() if isinstance(value, str) else bytes(value)

    def get(self, key: str) -> bytes:
        """What was kept, or what another rank would have: an id of NCCL."""
        return self._values.get(key, _NCCL_ID)

    def add(self, key: str, amount: int) -> int:
        """Count; at a barrier all have arrived."""
        count = int(self._values.get(key, b"0")) + amount
        self._values[key] = str(count).encode()
        return max(count, self._world_size) if "barrier" in key else count

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Keep `desired` where there is nothing else than `expected`."""
        if self._values.get(key, expected.encode()) == expected.encode():
            self.set(key, desired)
        return self.get(key)

    def check(self, keys: list[str]) -> bool:
        """Whether this process has set all of them: NCCL's watchdog looks for calls for help."""
        return all(key in self._values for key in keys)

    def wait(self, keys: list[str], timeout: object = None) -> None:
        """Wait for keys: all are there."""

    def delete_key(self, key: str) -> bool:
        """Forget a key."""
        return self._values.pop(key, None) is not None

    def num_keys(self) -> int:
        """How many values are kept."""
        return len(self._values)

    def set_timeout(self, timeout: object) -> None:
        """Nothing is waited for."""


class Groups:
    """Replaces what would wait for other ranks; torch is loaded, no group exists yet."""

    def __init__(self) -> None:
        """Put the stand-ins in place."""
        self._assumed: set[str] = set()
        self._store: LoneStore | None = None
        for scheme in ("env", "tcp", "file"):
            _meeting._rendezvous_handlers[scheme] = self._handler(_meeting._rendezvous_handlers[scheme])
        distributed_c10d.ProcessGroupGloo = _FakeGloo  # type: ignore[assignment, misc]
        stand_in: Any = FakeProcessGroup
        stand_in._set_sequence_number_for_group = lambda _: None  # torch before 2.14 asks for it
        for name in ("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"):
            _replace(name, getattr(self, f"_{name}"))
        tell_split_sizes()
        tell_peers()
        carry_objects("send_object_list", "recv_object_list")
        _replace("send_object_list", _over_nccl(distributed_c10d.send_object_list, lambda: None))
        _replace("recv_object_list", _over_nccl(distributed_c10d.recv_object_list, _receive))
        _replace("monitored_barrier", lambda *_args, **_options: None)
        when_loaded(_PLANNER, _trust_plans)

    def notes(self) -> list[str]:
        """What was made up, in sentences."""
        return sorted(self._assumed)

    def _handler(self, real: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        """A rendezvous that reads rank and world size as the real one does, and meets nobody."""

        def meet(url: str, *args: Any, **options: Any) -> Iterator[Any]:
            made: list[tuple[int, int]] = []
            with _no_server(lambda rank, size: made.append((rank, size))):
                try:
                    _, rank, size = next(iter(real(url, *args, **options)))
                except _Met:
                    rank, size = made[-1]
            self._store = self._store or LoneStore(size)
            self._note(size, "what other ranks would send is taken to be like this rank's own")
            yield self._store, rank, size

        return meet

    def _note(self, size: int, sentence: str) -> None:
        if size > 1:
            self._assumed.add(sentence)

    def _all_gather_object(self, object_list: list[Any], obj: Any, group: Any = None) -> None:
        object_list[:] = [copy.deepcopy(obj) for _ in range(distributed.get_world_size(group))]

    def _gather_object(
        self, obj: Any, object_gather_list: list[Any] | None = None, dst: Any = None, group: Any = None, **_: Any
    ) -> None:
        del dst
        if object_gather_list is not None:
            object_gather_list[:] = [copy.deepcopy(obj) for _ in range(distributed.get_world_size(group))]

    def _broadcast_object_list(self, object_list: list[Any], src: int | None = None, *_: Any, **__: Any) -> None:
        if src not in (None, distributed.get_rank()) and any(item is None for item in object_list):
            self._assumed.add(f"objects that rank {src} would broadcast are left as this rank had them")

    def _scatter_object_list(
        self,
        scatter_object_output_list: list[Any],
        scatter_object_input_list: list[Any] | None = None,
        src: Any = None,
        group: Any = None,
        **_: Any,
    ) -> None:
        del src
        if scatter_object_input_list:
            scatter_object_output_list[0] = scatter_object_input_list[distributed.get_rank(group)]
        else:
            self._assumed.add("objects that another rank would scatter are left as this rank had them")


class _Met(Exception):  # noqa: N818 - not an error: the way out of the real rendezvous
    """The real rendezvous has read its settings."""


class _no_server:  # noqa: N801 - reads as a statement: with _no_server(...)
    """Within it, the real rendezvous tells its rank and world size instead of making a store."""

    def __init__(self, told: Callable[[int, int], None]) -> None:
        self._told = told

    def __enter__(self) -> None:
        self._real = _meeting._create_c10d_store, _meeting.FileStore

        def make(_host: str, _port: int, rank: int, size: int, *_: Any, **__: Any) -> Any:
            self._told(rank, size)
            raise _Met

        _meeting._create_c10d_store = make
        _meeting.FileStore = lambda _path, _size: None

    def __exit__(self, *_: object) -> None:
        _meeting._create_c10d_store, _meeting.FileStore = self._real


class _AnyFake(type):
    """What `_FakeGloo` makes is one of them, where torch asks."""

    def __instancecheck__(cls, group: object) -> bool:
        return isinstance(group, FakeProcessGroup)


class _FakeGloo(metaclass=_AnyFake):
    """Stands where ProcessGroupGloo does and makes torch's own stand-in for a group."""

    def __new__(cls, _store: Any, rank: int, size: int, *_: Any, **__: Any) -> Any:
        make = getattr(FakeProcessGroup, "_create_internal", FakeProcessGroup)
        return make(rank, size)


def _over_nccl(real: Callable[..., Any], otherwise: Callable[[], None]) -> Callable[..., Any]:
    """Objects from one rank to another, over the virtual NCCL; over gloo nothing goes anywhere."""
    signature = inspect.signature(real)

    def sent(*args: Any, **options: Any) -> Any:
        group = signature.bind(*args, **options).arguments.get("group")
        if "nccl" in str(distributed.get_backend(group)):
            return real(*args, **options)
        return otherwise()

    return sent


def _receive() -> None:
    raise UnsupportedError(
        "this rank waits for objects from another one, which does not run", hint="--rank all runs all of them"
    )


def _trust_plans() -> None:
    """Let a sharded checkpoint be saved whose other shards are like this rank's own, and so leave gaps."""
    planner: Any = sys.modules[_PLANNER]
    real = planner._validate_global_plan

    def validate(*args: Any) -> bool | list[str]:
        return True if isinstance(real(*args), bool) else []

    planner._validate_global_plan = validate


def _replace(name: str, function: Callable[..., Any]) -> None:
    for module in (distributed, distributed_c10d):
        if hasattr(module, name):
            setattr(module, name, function)
