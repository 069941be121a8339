"""Calls that somebody has reviewed and that need no code of their own: they succeed, and memory does not notice.

All other functions of the libraries either are written by hand in the C files or end the process with their name. A
pattern is matched whole. What is listed allocates nothing, gives nothing back that its caller reads, and waits for
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TYPES = "[SDCZ]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What is known of a library's functions, beside those written by hand."""

    quiet: tuple[str, ...] = ()
    """Succeed and do nothing: settings that nobody reads back, waits, ends of things."""
    computes: tuple[str, ...] = ()
    """Succeed and would write device memory: its values are unknown afterwards."""

    def kind(self, name: str) -> str:
        """`quiet`, `computes`, or `unreviewed`."""
        for kind, patterns in (("quiet", self.quiet), ("computes", self.computes)):
            if any(re.fullmatch(pattern, name) for pattern in patterns):
                return kind
        return "unreviewed"


REVIEWS: Mapping[str, Review] = {
    "libcuda": Review(
        quiet=(
            "cuCtxEnablePeerAccess", "cuCtxDisablePeerAccess",
            "cuMemSetAccess", "cuFuncSetAttribute", "cuFuncSetCacheConfig", "cuKernelSetAttribute",
            "cuMemPoolSetAccess", "cuMemPrefetchAsync(_v2)?", "cuMemAdvise(_v2)?",
            "cuLibraryUnload", "cuProfilerStart", "cuProfilerStop",
            "cuTensorMapEncodeTiled", "cuTensorMapEncodeIm2col", "cuTensorMapReplaceAddress",
            "cuLogsRegisterCallback", "cuLogsUnregisterCallback",
        ),
        computes=("cuLaunchKernel", "cuLaunchKernelEx", "cuLaunchCooperativeKernel"),
    ),
    "libcudart": Review(
        quiet=(
            "cudaDeviceEnablePeerAccess", "cudaDeviceDisablePeerAccess",
            "cudaProfilerStart", "cudaProfilerStop",
            "cudaFuncSetAttribute", "cudaFuncSetCacheConfig", "cudaKernelSetAttributeForDevice", "cudaLibraryUnload",
            "cudaMemPoolSetAccess", "cudaDeviceSetGraphMemAttribute", "cudaDeviceGraphMemTrim",
            "cudaMemPrefetchAsync(_v2)?", "cudaMemAdvise(_v2)?", "cudaStreamAttachMemAsync",
            "cudaStreamUpdateCaptureDependencies", "cudaGraphRetainUserObject", "cudaUserObjectRelease",
            "cudaMemcpyToSymbol", "cudaMemcpyToSymbolAsync",
            "__cudaRegisterFatBinaryEnd", "__cudaUnregisterFatBinary", "__cudaRegisterFunction", "__cudaRegisterVar",
        ),
    ),
    "libcublas": Review(
        quiet=("cublasSetWorkspace(_v2)?", "cublasSetEmulationStrategy", "cublasSetEnvironmentMode"),
        computes=(
            # levels 1 to 3 as torch calls them: results go to memory of the caller
            rf"cublas{_TYPES}(dot|dotu|dotc|axpy|scal|swap|copy|rot|rotm)(_v2)?(_64)?",
            rf"cublas{_TYPES}(gemv|ger|geru|gerc|gemm|gemm3m|trmm|trsm|syrk|herk|syr2k|her2k|symm|hemm|symv|hemv|geam|dgmm)(_v2)?(_64)?",
            rf"cublas{_TYPES}(gemm|gemv)(Batched|StridedBatched)(_64)?", rf"cublas{_TYPES}trsmBatched(_64)?",
            r"cublas(Gemm|Sgemm|Cgemm|Dot|Nrm2|Scal|Axpy)Ex(_64)?",
            r"cublasGemm(Batched|StridedBatched|GroupedBatched)Ex(_64)?",
        ),
    ),
    "libcublasLt": Review(
        quiet=(
            "cublasLtMatmulDescSetAttribute", "cublasLtMatrixLayoutSetAttribute",
            "cublasLtMatmulPreferenceSetAttribute",
        ),
        computes=("cublasLtMatmul",),
    ),
    "libcudnn": Review(
        quiet=(
            "cudnnSetTensorNdDescriptorEx", "cudnnSetTensor4dDescriptor(Ex)?", "cudnnSetFilterNdDescriptor",
            "cudnnSetFilter4dDescriptor", "cudnnSetConvolutionNdDescriptor", "cudnnSetConvolutionGroupCount",
            "cudnnSetConvolutionMathType", "cudnnSetActivationDescriptor", "cudnnSetSpatialTransformerNdDescriptor",
            "cudnnSetCTCLossDescriptor(Ex)?", "cudnnBackendInitialize", "cudnn(Set|Restore)DropoutDescriptor",
        ),
        computes=(
            "cudnnBackendExecute", "cudnnBatchNormalizationForwardInference",
            "cudnnBatchNormalization(ForwardTraining|Backward)(Ex)?",
            "cudnnSpatialTf(GridGenerator|Sampler)(Forward|Backward)",
            "cudnnCTCLoss(_v8)?", "cudnnRNN(Forward|BackwardData_v8|BackwardWeights_v8)",
        ),
    ),
    "libnccl": Review(
        quiet=(
            "ncclGroupStart", "ncclGroupEnd", "ncclCommRegister", "ncclCommDeregister",
            "ncclRedOpDestroy",
        ),
    ),
    "libcufft": Review(
        quiet=("cufftSetAutoAllocation", "cufftSetStream", "cufftSetWorkArea"), computes=("cufftXtExec",)
    ),
    "libcusolver": Review(
        quiet=("cusolverDnSetStream", "cusolverDnXgesvdjSet(MaxSweeps|SortEig|Tolerance)", "cusolverDnXsyevjSet.*"),
    ),
    "libcusparse": Review(
        quiet=(
            "cusparseCsrSetPointers", "cusparse(Csr|Coo|DnMat)SetStridedBatch", "cusparseSpMatSetAttribute",
            "cusparseSp(SM|SV)_analysis", "cusparseSDDMM_preprocess", "cusparseSpMM_preprocess",
            rf"cusparse{_TYPES}bsrs[mv]2_analysis", "cusparseXbsrs[mv]2_zeroPivot",
        ),
        computes=(
            "cusparseSp(MM|MV|SM_solve|SV_solve|GEMM_copy)", "cusparseSDDMM", "cusparseXcoo2csr",
            "cusparseX(coosortByRow|csrsort)", "cusparseCreateIdentityPermutation",
            rf"cusparse{_TYPES}(bsrm[mv]|bsrs[mv]2_solve|csrgeam2)",
        ),
    ),
    "libcusparseLt": Review(
        quiet=(
            "cusparseLt(Init|Destroy)", "cusparseLtMatDescriptorDestroy", "cusparseLtMatmulDescriptorInit",
            "cusparseLtMatmulDescSetAttribute", "cusparseLtMatmulAlg(SelectionInit|SelectionDestroy|SetAttribute)",
            "cusparseLtMatmulPlan(Init|Destroy)",
        ),
        computes=("cusparseLtMatmul(Search)?", "cusparseLtSpMMACompress2?"),
    ),
    "libnvidia-ml": Review(),
}  # fmt: skip
"""By library."""
