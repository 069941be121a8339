"""What to say when no plan fits: how near the nearest comes, and the cheapest change that would make one fit.

more memory a GPU, more GPUs, a technique that is off      each is really searched, and the cheapest is told
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dnnmem.estimator.cluster import Cluster, find_cluster
from dnnmem.estimator.devices import load_devices
from dnnmem.estimator.errors import DnnmemError
from dnnmem.estimator.recorded import Recorded
from dnnmem.estimator.search import Priced
from dnnmem.estimator.techniques import Technique
from dnnmem.estimator.units import format_bytes

if TYPE_CHECKING:
    from dnnmem.estimator.recommend import Wanted

Again = Callable[[Recorded, "Wanted"], "Priced | None"]
_ALTERING = ("precision", "optimizer")
_MOST_GPUS = 8
"""Clusters up to this many times as large are looked at."""
_LOOKS = 6
"""Other GPUs that are looked at, cheapest first."""


def nearest_words(recorded: Recorded, wanted: Wanted, found: Sequence[Priced], again: Again) -> str:
    """Two sentences. `again` searches another question."""
    usable = wanted.cluster.device.usable_bytes * (1 - wanted.headroom)
    context = wanted.cluster.device.context_bytes or 0
    if not found:
        return "No plan can be priced."
    needs = (found[0].estimate.peak_reserved_bytes or 0) + context
    near = (
        f"The smallest plan needs {format_bytes(needs)} of the {format_bytes(int(usable))} that "
        f"{wanted.cluster.device.name} offers with {wanted.headroom:.0%} kept free, "
        f"{format_bytes(int(needs - usable))} "
        "too much."
    )
    changed = [_technique(recorded, wanted, again), *_machines(recorded, wanted, again)]
    offers = sorted((offer for offer in changed if offer is not None), key=lambda offer: offer[0])
    if not offers:
        return f"{near} No larger GPU, no {_MOST_GPUS} times as many and no technique that is off changes that."
    return f"{near} The cheapest change that fits: {offers[0][1]}."


def _technique(recorded: Recorded, wanted: Wanted, again: Again) -> tuple[float, str] | None:
    """Techniques that were off: they cost nothing. Where all of them together do not suffice, none does."""
    free = replace(wanted, only=frozenset(), without=frozenset(), max_techniques=None)
    all_ = _try(recorded, replace(free, allow=frozenset(_ALTERING)), again)
    if all_ is None:
        return None
    for names in ((), *((name,) for name in _ALTERING)):
        other = replace(free, allow=frozenset(names))
        found = None if other == wanted else _try(recorded, other, again)
        if found is not None:
            return 0.0, _words(found) + _option(names)
    return 0.0, _words(all_) + _option(_ALTERING)


def _option(names: Sequence[str]) -> str:
    return f" (--allow {' --allow '.join(names)}; it changes training)" if names else ""


def _machines(recorded: Recorded, wanted: Wanted, again: Again) -> Iterator[tuple[float, str] | None]:
    batch = wanted.global_batch or recorded.own_batch * wanted.cluster.gpus
    for cluster in _more(wanted.cluster):
        more = replace(wanted, cluster=cluster, global_batch=max(batch, cluster.gpus))
        found = _try(recorded, more, again)
        if found is not None:
            yield _offer(cluster, found)
            break
    for cluster in _others(wanted.cluster):
        found = _try(recorded, replace(wanted, cluster=cluster, global_batch=batch), again)
        if found is not None:
            yield _offer(cluster, found)
            break


def _offer(cluster: Cluster, found: Priced) -> tuple[float, str]:
    price = cluster.price_usd_per_h
    dollars = price[0] * cluster.gpus if price else float("inf")
    told = f", from {dollars:,.2f} USD an hour" if price else ""
    return dollars, f"{cluster.gpus} x {cluster.device.name}{told}, with {_words(found)}"


def _words(found: Priced) -> str:
    words: Sequence[Technique] = found.choice.techniques
    return ", ".join(technique.words for technique in words if technique.words)


def _more(cluster: Cluster) -> Iterator[Cluster]:
    times = 2
    while times <= _MOST_GPUS:
        try:
            yield find_cluster(f"{cluster.device.name}:{cluster.gpus * times}")
        except DnnmemError:
            return
        times *= 2


def _others(cluster: Cluster) -> Iterator[Cluster]:
    """The same number of GPUs with more memory, cheapest first; those without a price last."""
    larger = [
        device for device in load_devices().values()
        if device.usable_bytes > cluster.device.usable_bytes and device.vendor == cluster.device.vendor
    ]  # fmt: skip
    larger.sort(key=lambda device: (device.price_usd_per_h or (float("inf"),))[0])
    for device in larger[:_LOOKS]:
        with suppress(DnnmemError):
            yield find_cluster(f"{device.name}:{cluster.gpus}")


def _try(recorded: Recorded, wanted: Wanted, again: Again) -> Priced | None:
    try:
        return again(recorded, wanted)
    except DnnmemError:
        return None
