"""How large cuDNN's recurrent networks are: the one block of their weights, and the scratch memory of a call.

The same numbers as the virtual GPU's stub gives (virtual_gpu/dnn_rnn.c, which says where they are from): the layout of
the weights is exact; workspace and reserve are a model, since cuDNN tells them only to a process that has a GPU.

>>> it = Network(mode=LSTM, input=123, hidden=320, output=320, layers=4, directions=1)
>>> reserve_bytes(it, steps=1000, batch=25, element_bytes=4), workspace_bytes(it, batch=25, element_bytes=4)
(736000000, 17730560)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dnnmem.profilers.rules.gpu import Gpu

RELU, TANH, LSTM, GRU = range(4)
"""Numbers as in cuDNN's `cudnnRNNMode_t`."""
_GENERATOR = 48
"""Bytes of cuRAND's generator, one for each thread that the GPU can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A stack of recurrent layers as cuDNN sees it: with two biases for each gate, even if the program has none."""

    mode: int
    """`RELU`, `TANH`, `LSTM` or `GRU`."""
    input: int
    """Width of what the first layer reads."""
    hidden: int
    """Width of a layer's state."""
    output: int
    """Width of what one direction of a layer gives: `hidden`, or that of its projection."""
    layers: int
    """One above the other."""
    directions: int
    """1, or 2 if it also runs backwards."""

    @property
    def gates(self) -> int:
        """Matrices of a layer and direction, each for the input and for the state."""
        return {LSTM: 4, GRU: 3}.get(self.mode, 1)


def elements(it: Network) -> int:
    """Elements of all weights together: `cudnnGetRNNWeightSpaceSize`."""
    return sum(matrix * times for _, matrix, times in _parts(it))


def places(it: Network, *, biases: bool) -> list[int]:
    """Where each weight begins, in torch's order: w_ih, w_hh, b_ih, b_hh, w_hr of a layer and direction."""
    matrices: list[list[int]] = []
    end = 0
    for kind, matrix, _ in _parts(it):
        if kind == "bias":
            break
        if kind == "input":
            matrices.append([])
        matrices[-1].append(end)
        end += matrix
    wide, result = it.gates * it.hidden, []
    for number, (of_input, of_state, *projection) in enumerate(matrices):
        first = end + 2 * wide * number
        result += [of_input, of_state, *((first, first + wide) if biases else ()), *projection]
    return result


def _parts(it: Network) -> Iterator[tuple[str, int, int]]:
    """(what, elements, how many of these) in the order of the block."""
    wide = it.gates * it.hidden
    for number in range(it.layers * it.directions):
        below = it.input if number < it.directions else it.directions * it.output
        yield "input", wide * below, 1
        yield "state", wide * it.output, 1
        if it.output != it.hidden:
            yield "projection", it.output * it.hidden, 1
    yield "bias", wide, 2 * it.layers * it.directions


def workspace_bytes(it: Network, *, batch: int, element_bytes: int) -> int:
    """What one call needs while it runs, forward or backward."""
    matrices = sum(matrix for kind, matrix, _ in _parts(it) if kind != "bias")
    states = 2 if it.mode == LSTM else 1
    scratch = it.layers * it.directions * batch * it.hidden * (10 * it.gates + 2 * states)
    return (matrices + scratch) * element_bytes


def reserve_bytes(it: Network, *, steps: int, batch: int, element_bytes: int) -> int:
    """What forward keeps for backward: gates and cells of every step, and what the layers but the last give."""
    kept = {LSTM: 5, GRU: 6}.get(it.mode, 1)
    units = it.layers * it.hidden * kept + (it.layers - 1) * it.output
    return steps * batch * it.directions * units * element_bytes


def dropout_bytes(gpu: Gpu) -> int:
    """States of the random numbers for dropout between layers: one block for the whole process."""
    return gpu.threads.sm_count * gpu.threads.per_sm * _GENERATOR
