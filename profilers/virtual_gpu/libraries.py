"""The stub libraries: which C files each is made of, and how the names of its functions look.

>>> print(*(library.stem.removeprefix("lib") for library in LIBRARIES))
cuda cudart cublas cublasLt cudnn nccl cufft cusolver cusparse cusparseLt nvidia-ml
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """One stub library."""

    stem: str
    """Its name without the version: `libcudart`."""
    soname: str
    """The name under which torch asks for it; where torch names another version, that one counts."""
    sources: tuple[str, ...]
    """C files beside this one."""
    prefix: str
    """Pattern of the names that belong to it."""
    headers: tuple[str, ...]
    """Public headers that declare its functions."""


LIBRARIES = (
    Library(
        stem="libcuda",
        soname="libcuda.so.1",
        sources=(
            "identity.c",
            "memory.c",
            "values.c",
            "waits.c",
            "queue.c",
            "watch.c",
            "calls.c",
            "driver.c",
            "driver_memory.c",
            "driver_mapped.c",
            "driver_pools.c",
            "driver_streams.c",
            "driver_graphs.c",
            "driver_kernels.c",
        ),
        prefix=r"cu(?!File)[A-Z]\w*",
        headers=("cuda.h",),
    ),
    Library(
        stem="libcudart",
        soname="libcudart.so.13",
        sources=("runtime.c", "runtime_memory.c", "runtime_pools.c", "runtime_work.c", "runtime_kernels.c"),
        prefix=r"(__)?cuda[A-Z]\w*",
        headers=("cuda_runtime_api.h",),
    ),
    Library(
        stem="libcublas",
        soname="libcublas.so.13",
        sources=("blas.c",),
        prefix=r"cublas(?!Lt)[A-Z]\w*",
        headers=("cublas_api.h", "cublas_v2.h"),
    ),
    Library(
        stem="libcublasLt",
        soname="libcublasLt.so.13",
        sources=("blas_lt.c",),
        prefix=r"cublasLt\w+",
        headers=("cublasLt.h",),
    ),
    Library(
        stem="libcudnn",
        soname="libcudnn.so.9",
        sources=("dnn.c", "dnn_graph.c", "dnn_rnn.c", "dnn_ctc.c", "dnn_workspace.c"),
        prefix=r"cudnn[A-Z]\w*",
        headers=("cudnn_ops.h", "cudnn_graph.h", "cudnn_cnn.h", "cudnn_adv.h"),
    ),
    Library(
        stem="libnccl",
        soname="libnccl.so.2",
        sources=("communicators.c", "connections.c", "collectives.c", "reduce.c", "payload.c"),
        prefix=r"nccl[A-Z]\w*",
        headers=("nccl.h",),
    ),
    Library(
        stem="libcufft",
        soname="libcufft.so.12",
        sources=("fft.c",),
        prefix=r"cufft[A-Z]\w*",
        headers=("cufft.h", "cufftXt.h"),
    ),
    Library(
        stem="libcusolver",
        soname="libcusolver.so.12",
        sources=("solver.c", "solver_dense.c"),
        prefix=r"cusolver[A-Z]\w*",
        headers=("cusolverDn.h",),
    ),
    Library(
        stem="libcusparse",
        soname="libcusparse.so.12",
        sources=("sparse.c",),
        prefix=r"cusparse(?!Lt)[A-Z]\w*",
        headers=("cusparse.h",),
    ),
    Library(
        stem="libcusparseLt",
        soname="libcusparseLt.so.0",
        sources=("sparse_lt.c",),
        prefix=r"cusparseLt[A-Z]\w*",
        headers=(),
    ),
    Library(stem="libnvidia-ml", soname="libnvidia-ml.so.1", sources=("nvml.c",), prefix=r"nvml[A-Z]\w*", headers=()),
)
"""In this order: the first one holds the state that all others use."""
