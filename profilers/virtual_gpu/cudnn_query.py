"""Which engines the real cuDNN would offer for an operation on a GPU that is not here, and the workspace of each.

cuDNN 9.8 and later answer without a driver ("Deviceless Ahead-of-time Compilation" in cuDNN's documentation): the GPU
is a text in a DEVICEPROP descriptor, everything else is the public graph interface. A question names that interface's
descriptors, parts before wholes, as the stub of cuDNN got them from torch; here they are made again in the real one:

    {"mode": 0, "graph": [[17, [[901, 1, [0]], [902, 3, [8, 64, 56, 56]]]], ..., [15, [[801, 15, [4]]]]]}

`mode` is that of the heuristics; a descriptor is its type and its attributes: number, type of the values, values. The
last one is the operation graph. A value is an integer: the bits of a float, the place in the list of a descriptor.
Handles are left out.

This must run in a process without the stub libraries, except for one: cuDNN offers engines that it compiles at run time
(attention, grouped convolutions) only where it can load a driver library. It finds the stub of it, and asks nothing of
a GPU.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dnnmem.estimator.device import Device
from dnnmem.estimator.errors import DnnmemError, UnsupportedError
from dnnmem.profilers.virtual_gpu.identity import attributes, cuda_name

OLDEST = 90800
"""The first version that answers without a GPU."""

# numbers of cudnn_graph.h
_HANDLE, _DESCRIPTOR, _CHAR, _FRACTION = 0, 15, 24, 26
_INT64, _HEUR_MODE, _NUMERICAL_NOTE, _BEHAVIOR_NOTE = 3, 8, 11, 19
_WIDTHS = {2: 1, _CHAR: 1, _INT64: 8, 5: 8, _DESCRIPTOR: 8, _FRACTION: 8}
"""Bytes of a value by the number of its type; all others have 4."""
_ENGINE, _ENGINE_CONFIG, _HEURISTICS, _PLAN, _DEVICE_PROPERTIES = 2, 3, 4, 5, 38
_HEUR_MODE_OF, _HEUR_GRAPH, _HEUR_RESULTS, _HEUR_DEVICE = 200, 201, 202, 204
_CONFIG_ENGINE, _CONFIG_WORKSPACE, _PLAN_CONFIG, _PLAN_WORKSPACE, _PLAN_DEVICE = 300, 303, 401, 402, 407
_ENGINE_INDEX, _ENGINE_NOTES, _ENGINE_BEHAVIOR, _DEVICE_JSON = 1301, 1303, 1305, 2702
_MOST_NOTES = 32
_COMPILED_AT_RUN_TIME = 1
"""Bit of that behavior note."""


class Engine(NamedTuple):
    """One engine configuration, as cuDNN's heuristics offer it."""

    number: int
    """Inside cuDNN."""
    workspace_bytes: int
    """What a plan made of it needs; -1: no plan can be made of it."""
    notes: int
    """Numerical notes, a bit for each: torch leaves out tensor cores, or what is not deterministic, by them."""
    behavior: int
    """Behavior notes, a bit for each."""


class QuestionError(DnnmemError):
    """cuDNN does not know the answer, or the question is not one; the message is cuDNN's own."""


@dataclass(frozen=True, slots=True)
class Cudnn:
    """A loaded cuDNN."""

    library: ctypes.CDLL
    """Its functions."""
    version: int
    """`92400` is 9.24.0."""


def load_cudnn(path: Path, before: Sequence[Path] = ()) -> Cudnn:
    """Load libcudnn, and `before` it what it looks for: the stub of libcuda, without which some engines are missing.

    Raises `UnsupportedError` if that fails, or if cuDNN is too old to be asked.
    """
    try:
        for other in before:
            ctypes.CDLL(str(other), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UnsupportedError(f"{path} cannot be loaded: {error}") from None
    library.cudnnGetVersion.restype = ctypes.c_size_t
    version = int(library.cudnnGetVersion())
    if version < OLDEST:
        raise UnsupportedError(f"cuDNN {version} in {path} does not answer without a GPU; {OLDEST} and later do")
    return Cudnn(library, version)


def device_text(device: Device) -> str:
    """`device` as cuDNN writes one down. Of the numbers, only the compute capability was seen to change an answer.

    The keys are those of the public openxla/xla, `cudnn_device_props.cc`. Raises `UnsupportedError` without CUDA.
    """
    known = attributes(device)
    blocks = [known[f"MAX_BLOCK_DIM_{axis}"] for axis in "XYZ"]
    grid = [known[f"MAX_GRID_DIM_{axis}"] for axis in "XYZ"]
    facts = {
        "deviceVer": known["COMPUTE_CAPABILITY_MAJOR"] * 100 + known["COMPUTE_CAPABILITY_MINOR"] * 10,
        "multiProcessorCount": known["MULTIPROCESSOR_COUNT"],
        "warpSize": known["WARP_SIZE"],
        "maxSharedMemoryPerBlock": known["MAX_SHARED_MEMORY_PER_BLOCK"],
        "maxSharedMemoryPerBlockOptin": known["MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"],
        "reservedSharedMemoryPerBlock": known["RESERVED_SHARED_MEMORY_PER_BLOCK"],
        "maxRegistersPerSM": known["MAX_REGISTERS_PER_MULTIPROCESSOR"],
        "maxCtasPerSM": known["MAX_BLOCKS_PER_MULTIPROCESSOR"],
        "maxThreadsPerBlock": known["MAX_THREADS_PER_BLOCK"],
        "maxThreadsPerSM": known["MAX_THREADS_PER_MULTIPROCESSOR"],
        "regsPerBlock": known["MAX_REGISTERS_PER_BLOCK"],
        "totalGlobalMem": device.usable_bytes,
        "smClockRateKHz": known["CLOCK_RATE"],
        "l2CacheSize": known["L2_CACHE_SIZE"],
        "maxBlockSize": blocks,
        "memClockRateKHz": known["MEMORY_CLOCK_RATE"],
        "maxGridSize": grid,
        "supportCoopLaunch": known["COOPERATIVE_LAUNCH"],
        "pciDeviceId": 0,
        "isTccDriver": 0,
        "cudaDeviceId": 0,
        "driverVer": 13000,
        "deviceName": cuda_name(device),
    }
    return json.dumps(facts)


def ask(cudnn: Cudnn, question: Any, device: str) -> list[Engine]:
    """The engines that cuDNN offers for a question on the GPU `device` (`device_text`), best first.

    Raises `QuestionError` if cuDNN refuses it, or if it is no question.
    """
    with ExitStack() as made:
        gpu = _make(cudnn, made, _DEVICE_PROPERTIES, [[_DEVICE_JSON, _CHAR, list(device.encode())]], [])
        try:
            graph = _rebuild(cudnn, made, question["graph"])
            mode = int(question["mode"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise QuestionError(f"this is no question: {type(error).__name__} {error}") from None
        wanted = [
            [_HEUR_MODE_OF, _HEUR_MODE, [mode]],
            [_HEUR_GRAPH, _DESCRIPTOR, [0]],
            [_HEUR_DEVICE, _DESCRIPTOR, [1]],
        ]
        heuristics = _make(cudnn, made, _HEURISTICS, wanted, [graph, gpu])
        return [_engine(cudnn, config, gpu) for config in _configs(cudnn, made, heuristics)]


def _rebuild(cudnn: Cudnn, made: ExitStack, graph: Sequence[Any]) -> ctypes.c_void_p:
    """The descriptors of a question, made again; the last of them."""
    done: list[ctypes.c_void_p] = []
    for kind, described in graph:
        done.append(_make(cudnn, made, kind, described, done))
    return done[-1]


def _make(
    cudnn: Cudnn, made: ExitStack, kind: int, described: Sequence[Any], done: Sequence[ctypes.c_void_p]
) -> ctypes.c_void_p:
    """One finalized descriptor, which lives as long as `made`; `done` are those that its values may name."""
    it = made.enter_context(_descriptor(cudnn, kind))
    for name, type_, values in described:
        if type_ == _HANDLE:
            continue
        array = _array(type_, [done[v].value for v in values] if type_ == _DESCRIPTOR else values)
        count = len(values) // 2 if type_ == _FRACTION else len(values)
        status = cudnn.library.cudnnBackendSetAttribute(it, name, type_, ctypes.c_int64(count), array)
        _check(cudnn, status, f"attribute {name} of descriptor {kind}")
    _check(cudnn, cudnn.library.cudnnBackendFinalize(it), f"descriptor {kind}")
    return it


@contextmanager
def _descriptor(cudnn: Cudnn, kind: int) -> Iterator[ctypes.c_void_p]:
    it = ctypes.c_void_p()
    _check(cudnn, cudnn.library.cudnnBackendCreateDescriptor(kind, ctypes.byref(it)), f"descriptor {kind}")
    try:
        yield it
    finally:
        cudnn.library.cudnnBackendDestroyDescriptor(it)


def _array(type_: int, values: Sequence[Any]) -> Any:
    """Values, given as integers, as the C array that cuDNN reads."""
    width = _WIDTHS.get(type_, 4)
    data = b"".join((int(value) % 2 ** (8 * width)).to_bytes(width, "little") for value in values)
    return ctypes.create_string_buffer(data, len(data))


def _configs(cudnn: Cudnn, made: ExitStack, heuristics: ctypes.c_void_p) -> list[ctypes.c_void_p]:
    """All that the heuristics offer."""
    count = ctypes.c_int64()
    read = cudnn.library.cudnnBackendGetAttribute
    status = read(heuristics, _HEUR_RESULTS, _DESCRIPTOR, ctypes.c_int64(0), ctypes.byref(count), None)
    _check(cudnn, status, "heuristics")
    room = [made.enter_context(_descriptor(cudnn, _ENGINE_CONFIG)) for _ in range(count.value)]
    array = (ctypes.c_void_p * len(room))(*(it.value for it in room))
    status = read(heuristics, _HEUR_RESULTS, _DESCRIPTOR, ctypes.c_int64(len(room)), ctypes.byref(count), array)
    _check(cudnn, status, "heuristics")
    return room[: count.value]


def _engine(cudnn: Cudnn, config: ctypes.c_void_p, gpu: ctypes.c_void_p) -> Engine:
    with _descriptor(cudnn, _ENGINE) as engine:
        count = ctypes.c_int64()
        read = cudnn.library.cudnnBackendGetAttribute
        holder = ctypes.c_void_p(engine.value)
        status = read(config, _CONFIG_ENGINE, _DESCRIPTOR, ctypes.c_int64(1), ctypes.byref(count), ctypes.byref(holder))
        _check(cudnn, status, "engine")
        behavior = _notes(cudnn, engine, _ENGINE_BEHAVIOR, _BEHAVIOR_NOTE)
        return Engine(
            number=_number(cudnn, engine, _ENGINE_INDEX),
            workspace_bytes=_workspace(cudnn, config, gpu, compiles=bool(behavior & _COMPILED_AT_RUN_TIME)),
            notes=_notes(cudnn, engine, _ENGINE_NOTES, _NUMERICAL_NOTE),
            behavior=behavior,
        )


def _workspace(cudnn: Cudnn, config: ctypes.c_void_p, gpu: ctypes.c_void_p, *, compiles: bool) -> int:
    """Of the plan that would be made. If that means a second of compiling, the configuration is asked instead."""
    if compiles:
        return _number(cudnn, config, _CONFIG_WORKSPACE)
    wanted = [[_PLAN_CONFIG, _DESCRIPTOR, [0]], [_PLAN_DEVICE, _DESCRIPTOR, [1]]]
    with ExitStack() as made:
        try:
            plan = _make(cudnn, made, _PLAN, wanted, [config, gpu])
        except QuestionError:
            return -1
        return _number(cudnn, plan, _PLAN_WORKSPACE)


def _number(cudnn: Cudnn, it: ctypes.c_void_p, name: int) -> int:
    value, count = ctypes.c_int64(), ctypes.c_int64()
    status = cudnn.library.cudnnBackendGetAttribute(
        it, name, _INT64, ctypes.c_int64(1), ctypes.byref(count), ctypes.byref(value)
    )
    _check(cudnn, status, f"attribute {name}")
    return value.value


def _notes(cudnn: Cudnn, engine: ctypes.c_void_p, name: int, type_: int) -> int:
    """Notes of an engine as bits; those that this cuDNN does not tell are left out."""
    room, count = (ctypes.c_int * _MOST_NOTES)(), ctypes.c_int64()
    status = cudnn.library.cudnnBackendGetAttribute(
        engine, name, type_, ctypes.c_int64(_MOST_NOTES), ctypes.byref(count), room
    )
    return 0 if status else sum({1 << room[i] for i in range(count.value)})


def _check(cudnn: Cudnn, status: int, what: str) -> None:
    if status == 0:
        return
    said = ctypes.create_string_buffer(1024)
    cudnn.library.cudnnGetLastErrorString(said, ctypes.c_size_t(len(said)))
    raise QuestionError(f"cuDNN refuses {what} with status {status}: {said.value.decode(errors='replace')}")
