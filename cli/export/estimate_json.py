"""A plan's price as JSON, `dnnmem.estimate/1`. Bytes are integers, seconds are numbers, what is not known is null."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dnnmem.estimator.estimate import Estimate
from dnnmem.estimator.plan_text import to_json as plan_to_json
from dnnmem.estimator.step_time import LayerTime

SCHEMA = "dnnmem.estimate/1"


def to_json(found: Estimate, layers: Sequence[LayerTime]) -> str:
    """The estimate as indented JSON, a newline at its end."""
    plan = plan_to_json(found.plan)
    del plan["schema"]
    data = {
        "schema": SCHEMA,
        "plan": plan,
        "cluster": {"name": found.cluster.name, "gpu": found.cluster.device.name, "gpus": found.cluster.gpus},
        "step_seconds": found.step_seconds,
        "interval_seconds": list(found.interval_seconds),
        "bound": found.bound,
        "host_bound": found.host_bound,
        "breakdown": dict(found.breakdown),
        "classes": dict(found.classes),
        "lanes": dict(found.lanes),
        "samples": found.samples,
        "tokens": found.tokens,
        "samples_per_second": found.per_second(found.samples),
        "tokens_per_second": found.per_second(found.tokens),
        "model_flops": found.model_flops,
        "mfu": found.mfu,
        "usd_per_step": found.usd_per_step and list(found.usd_per_step),
        "usd_per_billion_tokens": found.usd_per_billion_tokens and list(found.usd_per_billion_tokens),
        "joules_bound": found.joules_bound,
        "peak_allocated_bytes": found.peak_allocated_bytes,
        "peak_reserved_bytes": found.peak_reserved_bytes,
        "context_bytes": found.context_bytes,
        "usable_bytes": found.cluster.device.usable_bytes,
        "fits": found.fits,
        "layers": [
            {
                "module": ".".join(layer.module),
                "forward_seconds": layer.forward_seconds,
                "backward_seconds": layer.backward_seconds,
                "step_seconds": layer.step_seconds,
            }
            for layer in layers
        ],
        "notes": list(found.notes),
    }
    return json.dumps(data, indent=2) + "\n"
