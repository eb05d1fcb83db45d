"""Graphs without circles, laid out in layers: who stands in which, in what order, and where.

The same graph gives the same picture, always: there is no chance in it, and ties go by the order of the nodes.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise

Node = str
Edges = Mapping[Node, Sequence[Node]]
"""By node: those that its arrows lead to."""

Layers = list[list[Node]]

_SWEEPS, _SETTLING = 24, 200
_PULL = 3.0


def without_implied(edges: Edges) -> dict[Node, list[Node]]:
    """The graph without arrows that a longer way stands for (its transitive reduction)."""
    reach: dict[Node, set[Node]] = {}
    for node in TopologicalSorter(edges).static_order():  # those that arrows lead to come first
        below = edges.get(node, ())
        reach[node] = set(below).union(*(reach[other] for other in below))
    return {
        node: [there for there in below if not any(there in reach[other] for other in below)]
        for node, below in edges.items()
    }


@dataclass
class Layout:
    """Where everything stands. A step of a long arrow that crosses a layer takes a place in it, like a node."""

    layers: Layers
    """Names by layer, from left to right; those that are not nodes are steps."""
    center: dict[Node, float]
    """Of nodes and steps, along the layer."""
    chains: list[list[Node]]
    """For each arrow: its node, its steps, its node."""


def layout(edges: Edges, width_of: Mapping[Node, float], gap: float, step_width: float) -> Layout:
    """Place nodes of the given widths, at least `gap` apart in a layer; arrows lead to later layers."""
    depth = _depths(edges)
    layers: Layers = [[] for _ in range(max(depth.values()) + 1)]
    for node in edges:
        layers[depth[node]].append(node)
    chains = []
    for node, below in edges.items():
        for there in below:
            steps = [f"{node}>{there}@{at}" for at in range(depth[node] + 1, depth[there])]
            for at, step in enumerate(steps, depth[node] + 1):
                layers[at].append(step)
            chains.append([node, *steps, there])
    near = _neighbours(chains)
    widths = {name: width_of.get(name, step_width) for layer in layers for name in layer}
    orders = _fewest_crossings(layers, near)
    found = [Layout(order, _centers(order, near, widths, gap, width_of), chains) for order in orders]
    return min(found, key=_sideways)


def _sideways(found: Layout) -> float:
    """How far all arrows go to the side, in all."""
    return sum(abs(found.center[one] - found.center[other]) for chain in found.chains for one, other in pairwise(chain))


def _depths(edges: Edges) -> dict[Node, int]:
    """The layer of each node: behind all that lead to it, and then as near as can be to what it leads to."""
    order = list(TopologicalSorter(edges).static_order())
    depth = dict.fromkeys(order, 0)
    for node in reversed(order):
        for there in edges.get(node, ()):
            depth[there] = max(depth[there], depth[node] + 1)
    for node in order:
        below = [depth[there] for there in edges.get(node, ())]
        if below:
            depth[node] = max(depth[node], min(below) - 1)
    return depth


def _neighbours(chains: Sequence[Sequence[Node]]) -> dict[Node, list[Node]]:
    near: dict[Node, list[Node]] = {}
    for chain in chains:
        for one, other in pairwise(chain):
            near.setdefault(one, []).append(other)
            near.setdefault(other, []).append(one)
    return near


def _fewest_crossings(layers: Layers, near: Mapping[Node, Sequence[Node]]) -> list[Layers]:
    """The orders of all layers with the fewest crossings that were met on the way from two beginnings."""
    met = [order for begin in (layers, [layer[::-1] for layer in layers]) for order in _sorted_often(begin, near)]
    fewest = min(_crossings(order, near) for order in met)
    return [order for at, order in enumerate(met) if _crossings(order, near) == fewest and order not in met[:at]]


def _sorted_often(layers: Layers, near: Mapping[Node, Sequence[Node]]) -> Iterator[Layers]:
    """Each layer sorted by where its neighbours stand in the layer before, to and fro."""
    yield layers
    for sweep in range(_SWEEPS):
        layers, down = [list(layer) for layer in layers], sweep % 2 == 0
        for at in range(1, len(layers)) if down else range(len(layers) - 2, -1, -1):
            place = {name: i for i, name in enumerate(layers[at - 1 if down else at + 1])}
            mean = {}
            for i, name in enumerate(layers[at]):
                found = [place[other] for other in near.get(name, ()) if other in place]
                mean[name] = sum(found) / len(found) if found else float(i)
            layers[at].sort(key=mean.__getitem__)
        for layer in layers:
            _swap(layer, layers, near, even=sweep % 3 == 0)
        yield layers


def _swap(layer: list[Node], layers: Layers, near: Mapping[Node, Sequence[Node]], *, even: bool) -> None:
    """Change neighbours of one of the layers where that takes crossings away; `even` where it makes no difference."""
    for at in range(len(layer) - 1):
        before = _crossings(layers, near)
        layer[at : at + 2] = layer[at : at + 2][::-1]
        after = _crossings(layers, near)
        if after > before or (after == before and not even):
            layer[at : at + 2] = layer[at : at + 2][::-1]


def _crossings(layers: Layers, near: Mapping[Node, Sequence[Node]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        place = {name: i for i, name in enumerate(lower)}
        lines = [(i, place[other]) for i, name in enumerate(upper) for other in near.get(name, ()) if other in place]
        total += sum((a < c and b > d) or (a > c and b < d) for a, b in lines for c, d in lines) // 2
    return total


def _centers(
    layers: Layers,
    near: Mapping[Node, Sequence[Node]],
    widths: Mapping[Node, float],
    gap: float,
    nodes: Container[Node],
) -> dict[Node, float]:
    """Each as near to the mean of its neighbours as its layer's order allows."""
    center = {}
    for layer in layers:
        offsets = _offsets(layer, widths, gap)
        center |= {name: at - offsets[-1] / 2 for name, at in zip(layer, offsets, strict=True)}
    for sweep in range(_SETTLING):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = [_pulled(name, near.get(name, ()), center, nodes) for name in layer]
            offsets = _offsets(layer, widths, gap)
            fitted = _rising([want - at for want, at in zip(wanted, offsets, strict=True)])
            center |= {name: fit + at for name, fit, at in zip(layer, fitted, offsets, strict=True)}
    return center


def _offsets(layer: Sequence[Node], widths: Mapping[Node, float], gap: float) -> list[float]:
    """Centers of a layer that is packed, from 0."""
    offsets = [0.0]
    for one, other in pairwise(layer):
        offsets.append(offsets[-1] + (widths[one] + widths[other]) / 2 + gap)
    return offsets


def _pulled(name: Node, others: Sequence[Node], center: Mapping[Node, float], nodes: Container[Node]) -> float:
    """Where the neighbours of `name` want it. Steps pull hard, so that a long arrow is straight between its ends."""
    weights = [_PULL ** ((name not in nodes) + (other not in nodes)) for other in others]
    if not weights:
        return center[name]
    return sum(weight * center[other] for weight, other in zip(weights, others, strict=True)) / sum(weights)


def _rising(values: Sequence[float]) -> list[float]:
    """The nearest values that nowhere fall, by least squares: neighbours that do are averaged."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    return [value for value, count in pools for _ in range(count)]
