"""Which parameters are matrices inside of a model: those that methods for hidden layers take (Muon, GaLore).

    wte.weight, an Embedding      no     a table of vectors
    h.0.mlp.up.weight (r, c)      yes
    h.0.mlp.up.bias (r)           no     a vector, as are scales of norms; kernels of convolutions have more dimensions
    lm_head.weight                no     the last matrix, which gives the output; unless it is a block's, as others are

>>> types = {("wte",): "Embedding", ("h", "0", "up"): "Linear", ("h", "1", "up"): "Linear", ("head",): "Linear"}
>>> sorted(hidden_matrices(types, [(path, "weight", 2) for path in types]))
[(('h', '0', 'up'), 'weight'), (('h', '1', 'up'), 'weight')]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from dnnmem.estimator.trace import Kind, Trace

Path = tuple[str, ...]
Name = tuple[Path, str]
"""A parameter: the path of the module that owns it, and its name there."""


def hidden_matrices(types: Mapping[Path, str], parameters: Iterable[tuple[Path, str, int]]) -> frozenset[Name]:
    """Args: `types`: class of each module; `parameters`: path, name and dimensions, in definition order."""
    found = [(path, name) for path, name, ndim in parameters if ndim == 2 and "Embedding" not in types.get(path, "")]
    alike = Counter(_pattern(path) for path, _ in found)
    if found and alike[_pattern(found[-1][0])] == 1:
        del found[-1]
    return frozenset(found)


def hidden_of(trace: Trace) -> frozenset[Name]:
    """Those of the model whose step it is."""
    params = [s for i, s in sorted(trace.storages.items()) if s.kind is Kind.PARAM and i in trace.pinned]
    types = {module.path: module.type for module in trace.modules}
    return hidden_matrices(types, [(t.module, t.name, len(t.shape)) for s in params for t in s.tensors])


def _pattern(path: Path) -> Path:
    """The same for modules of several blocks that have one place in them; a number at its end counts as a name."""
    return (*(part.rstrip("0123456789") + "*" if part[-1:].isdigit() else part for part in path[:-1]), *path[-1:])
