"""What of this process's memory on a virtual GPU is a model's, and not what a library said.

Some libraries tell how much scratch memory they want only to a process that has a GPU. The stub libraries answer with a
model, each stated where it is computed (fft.c, solver.c, sparse.c, dnn_ctc.c, dnn_rnn.c), and count how often.
"""

from __future__ import annotations

import ctypes

import torch

from dnnmem.estimator.units import format_bytes

RECURRENT_MODEL = "the scratch memory of recurrent layers is a model of cuDNN's, measured once, in 2017"
"""Of dnn_rnn.c, and of a fake run, which has its numbers."""
TRANSFORM_MODEL = "cuFFT's work areas are a model (one complex copy of the data)"
"""Of fft.c, and of a fake run."""
_MODELLED = {
    0: TRANSFORM_MODEL,
    1: "cuSOLVER's scratch memory is a model (what LAPACK documents for the same routine)",
    2: "cuSPARSE's buffers, and how many elements a sparse result has, are a model",
    3: "cuDNN's workspace for the CTC loss is a model (what the algorithm holds)",
}
"""By the number of `vg_topic` (virtual_gpu.h)."""
_MANAGED = 4


def certainty_notes() -> list[str]:
    """Sentences for a report; call it in the process that ran, at its end."""
    process, notes = ctypes.CDLL(None), []
    process.vg_modelled_calls.restype = ctypes.c_long
    process.vg_modelled_most.restype = ctypes.c_size_t
    if process.vg_dnn_modelled():
        notes.append(RECURRENT_MODEL)
    for topic, sentence in _MODELLED.items():
        if calls := int(process.vg_modelled_calls(topic)):
            most = format_bytes(int(process.vg_modelled_most(topic)))
            notes.append(f"{sentence}: asked for {calls} times, at most {most}")
    if managed := int(process.vg_modelled_most(_MANAGED)):
        notes.append(
            f"managed memory, {format_bytes(managed)} at its peak, is not counted as the GPU's: the driver moves it "
            "between host and GPU as there is room"
        )
    if torch.backends.cudnn.benchmark:
        notes.append(
            "cudnn.benchmark is on: a GPU takes the plan that it measures to be fastest; here all take as long, so it "
            "is the first that cuDNN proposes, after each was tried with its workspace"
        )
    if torch.cuda.is_available() and torch.cuda.get_allocator_backend() == "cudaMallocAsync":
        notes.append(
            "backend:cudaMallocAsync: the driver's pool is a model that reserves what was in use at once, without loss "
            "to pieces"
        )
    return notes
