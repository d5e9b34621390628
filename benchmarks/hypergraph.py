"""Layers on 20,000 nodes and 20,000 edges of 10, 64 features, forward and backward, against DeepHypergraph.

Same weights; outputs and gradients must agree to 1e-4. "operator" leaves out what is the same on both sides, the product with Θ.
Memory is what a fresh process holds at most, beyond its start, for the hypergraph and a step of each layer but the two with
attention, whose peer takes gigabytes. HNHN has no layer without Θ.
"""

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rounds import Ratio, in_turns, main, peer
from torch import Tensor, nn

from neuropil.interaction import hypergraph_layers as hl
from neuropil.interaction.hypergraph import Hypergraph

NODES, EDGES, SIZE, FEATURES = 20_000, 20_000, 10, 64
LAYERS = {"HGNN": "HGNNConv", "HGNNPlus": "HGNNPConv", "UniGCN": "UniGCNConv", "UniSAGE": "UniSAGEConv", "UniGIN": "UniGINConv"}
ATTENTION = {"UniGAT": "UniGATConv", "HNHN": "HNHNConv"}
NOTES = {"layer": "Θ and its gradients, the same on both sides, are a third to a half of our time", "operator": "Θ is the identity"}


def edges() -> tuple[Tensor, Tensor]:
    """The members of each edge, which all differ, and the nodes' features."""
    g = torch.Generator().manual_seed(0)
    members = torch.rand(EDGES, 200, generator=g).argsort(1)[:, :SIZE] * 100 + torch.randint(100, (EDGES, 1), generator=g)
    return members, torch.randn(NODES, FEATURES, generator=g)


def from_arrays(members: Tensor) -> Hypergraph:
    return Hypergraph.from_edges(members.flatten(), torch.full((EDGES,), SIZE), NODES)


def from_lists(dhg: Any, rows: list[list[int]]) -> Any:
    """The peer's hypergraph with the matrices that it makes at first use."""
    h = dhg.Hypergraph(NODES, rows)
    _ = h.H, h.H_T, h.D_v, h.D_e
    return h


def our_layer(name: str) -> nn.Module:
    return getattr(hl, name)(FEATURES, FEATURES, **({"clamp": (0.001, 5.0)} if name == "UniGAT" else {}))


def their_layer(dhg: Any, name: str) -> nn.Module:
    return getattr(dhg.nn, (LAYERS | ATTENTION)[name])(FEATURES, FEATURES, drop_rate=0.0, is_last=True)


def same_weights(name: str, ours: nn.Module, theirs: nn.Module) -> None:
    """The peer's weights into our layer."""
    names = [("theta_ve", "theta_v2e"), ("theta_ev", "theta_e2v")] if name == "HNHN" else [("theta", "theta")]
    with torch.no_grad():
        for mine, other in ((getattr(ours, a), getattr(theirs, b)) for a, b in names):
            mine.weight.copy_(other.weight)
            mine.bias.copy_(other.bias)
        if name == "UniGAT":
            ours.a_e.copy_(theirs.atten_e.weight)
            ours.a_v.copy_(theirs.atten_dst.weight)


def no_theta(ours: nn.Module, theirs: nn.Module) -> None:
    """The identity in place of Θ, so that the operator alone is timed."""
    if hasattr(ours.theta, "before"):
        ours.theta.before = ours.theta.after = lambda x: x  # type: ignore[method-assign, assignment]
    else:
        ours.transform = lambda x: x  # type: ignore[method-assign, assignment]
    theirs.theta = nn.Identity()


def step(layer: nn.Module, x: Tensor, h: object) -> tuple[Tensor, Tensor]:
    """Forward and backward: the output and the gradient by x."""
    x = x.clone().requires_grad_()
    y = layer(x, h)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    return y.detach(), x.grad


def held() -> float:
    """MiB that this process has held at most; not `getrusage`, which a new process inherits from the one that started it."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def memory(side: str) -> float:
    """MiB beyond the start, in a process of its own."""
    (members, x), dhg = edges(), peer("dhg", "dhg")
    rows = members.tolist()
    Path("/proc/self/clear_refs").write_text("5")  # the most so far becomes what is held now
    before = held()
    h = from_arrays(members) if side == "ours" else from_lists(dhg, rows)
    for name in LAYERS:
        step(our_layer(name) if side == "ours" else their_layer(dhg, name), x, h)
    return held() - before


def alone(side: str) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(memory, side).result()


def compare(quick: bool) -> Iterator[Ratio]:
    dhg = peer("dhg", "dhg", "pip install --no-deps dhg optuna colorlog")
    dhg_has: dict[str, Any] = {"against": "dhg", "package": "dhg"}
    (members, x), rounds = edges(), 3 if quick else 5
    rows = members.tolist()
    h, their_h = from_arrays(members), from_lists(dhg, rows)

    taken = in_turns({"ours": lambda: from_arrays(members), "theirs": lambda: from_lists(dhg, rows)}, rounds)
    note = "ours from arrays, theirs from lists, with its matrices"
    yield Ratio("building a hypergraph", ours=taken["ours"], theirs=taken["theirs"], note=note, **dhg_has)
    if Path("/proc/self/status").exists():
        sides = [[alone(side) for _ in range(1 if quick else 3)] for side in ("ours", "theirs")]
        yield Ratio("memory of a hypergraph and five layers", ours=sides[0], theirs=sides[1], unit="MiB", **dhg_has)

    for name in LAYERS | ATTENTION:
        for kind in ("layer", "operator")[: 1 if name == "HNHN" else 2]:
            ours, theirs = our_layer(name), their_layer(dhg, name)
            same_weights(name, ours, theirs)
            if kind == "operator":
                no_theta(ours, theirs)
            for mine, other in zip(step(ours, x, h), step(theirs, x, their_h), strict=True):
                torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)

            sides = {"ours": lambda layer=ours: step(layer, x, h), "theirs": lambda layer=theirs: step(layer, x, their_h)}
            taken = in_turns(sides, rounds)
            wish = 10.0 if kind == "layer" and name != "HNHN" else None
            what = f"{name}, {kind}, forward and backward"
            yield Ratio(what, ours=taken["ours"], theirs=taken["theirs"], at_least=wish, note=NOTES[kind], **dhg_has)


if __name__ == "__main__":
    main(compare)
