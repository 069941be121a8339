"""Which torch is found, and what is said of one that cannot serve."""

from __future__ import annotations

import sys

import pytest

from dnnmem.estimator.errors import UnsupportedError
from dnnmem.profilers.virtual_gpu import installed


@pytest.fixture
def site(tmp_path, monkeypatch):
    """`site(version_py, headers)` makes a site-packages folder with nothing but a torch in it."""

    def make(version_py, headers=()):
        (tmp_path / "torch" / "lib").mkdir(parents=True)
        (tmp_path / "torch" / "__init__.py").touch()
        (tmp_path / "torch" / "version.py").write_text(version_py)
        for header in headers:
            file = tmp_path / "nvidia" / header
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        for name in [n for n in sys.modules if n.split(".")[0] in {"torch", "nvidia"}]:
            monkeypatch.delitem(sys.modules, name)
        return tmp_path

    return make


CUDA_12 = [
    *(f"cuda_runtime/include/{name}" for name in ("cuda.h", "cuda_runtime_api.h")),
    *(f"cublas/include/{name}" for name in ("cublas_v2.h", "cublasLt.h")),
    "cudnn/include/cudnn.h",
    "nccl/include/nccl.h",
    "cufft/include/cufftXt.h",
    "cusolver/include/cusolverDn.h",
    "cusparse/include/cusparse.h",
]


def test_a_torch_for_cpu_is_told_from_one_for_cuda(site):
    # GIVEN a torch without CUDA
    site("__version__ = '2.9.1+cpu'\ncuda = None\n")
    # WHEN THEN
    with pytest.raises(UnsupportedError, match=r"torch 2\.9\.1\+cpu is not built for CUDA"):
        installed.find_torch()


def test_headers_of_cuda_12_are_found_in_their_folders(site):
    # GIVEN a torch for CUDA 12 whose dependencies brought their headers
    folder = site("from typing import Optional\n__version__ = '2.7.1+cu126'\ncuda: Optional[str] = '12.6'\n", CUDA_12)
    # WHEN
    found = installed.find_torch()
    # THEN
    assert (found.version, found.cuda) == ("2.7.1+cu126", "12.6")
    assert found.header("cublasLt.h") == folder / "nvidia" / "cublas" / "include" / "cublasLt.h"


def test_headers_of_another_cuda_are_left_alone(site):
    # GIVEN both a CUDA 12 and a CUDA 13 folder
    folder = site(
        "__version__ = '2.14.1'\ncuda = '13.0'\n",
        [*CUDA_12, *(f"cu13/include/{name.split('/')[-1]}" for name in CUDA_12), "cu12/include/cuda.h"],
    )
    # WHEN
    found = installed.find_torch()
    # THEN the wanted one goes first, and the folder of the other is not even looked into
    assert found.header("cuda.h") == folder / "nvidia" / "cu13" / "include" / "cuda.h"
    assert folder / "nvidia" / "cu12" / "include" not in found.includes


def test_a_missing_header_is_named_with_the_way_out(site):
    # GIVEN a torch whose NCCL has no headers
    site("__version__ = '2.7.1'\ncuda = '12.6'\n", [name for name in CUDA_12 if "nccl" not in name])
    # WHEN THEN
    with pytest.raises(UnsupportedError, match=r"needs nccl\.h") as error:
        installed.find_torch()
    assert "pip" in error.value.hint


def test_no_torch_at_all_is_said(tmp_path, monkeypatch):
    # GIVEN an empty path
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [n for n in sys.modules if n.split(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    # WHEN THEN
    with pytest.raises(UnsupportedError, match="torch is not installed"):
        installed.find_torch()
